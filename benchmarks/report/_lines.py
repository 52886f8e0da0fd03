"""Lines for papers: accuracy by the size of the test, by the width of the model, and by learning rate."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._figure import DPI, FAINT, STYLE, save
from ._records import SIZES, Row
from ._style import Curve, make_curves

LINESTYLES = ("-", "--", ":", "-.")


class Line(NamedTuple):
    """What is drawn for a row or a curve: its name, its look, its place among those that look alike, x -> y."""

    name: str
    curve: Curve
    place: int
    points: dict[float, float]


class Panel(NamedTuple):
    title: str
    xlabel: str
    lines: list[Line]
    show: Callable[[float], str] = str  # of a tick


def draw_sizes(rows: list[Row], path: Path) -> list[Path]:
    """A panel for each size in which the tests differ; nothing is drawn if they differ in none."""
    return _draw(
        [
            Panel("", title, _by_row(rows, lambda row, name=name: row.by_size(name)))
            for name, title in SIZES.items()
            if len(rows[0].by_size(name)) > 1
        ],
        path,
    )


def draw_widths(rows: list[Row], path: Path) -> list[Path]:
    """A panel for each test, the easiest first; nothing if every model has the same width."""
    if not rows[0].has_width:
        return []
    curves = make_curves(rows)
    return _draw(
        [
            Panel(test.label, "width", [Line(curve.name, curve, 0, curve.by_width(test)) for curve in curves])
            for test in rows[0].segments
        ],
        path,
    )


def draw_learning_rates(rows: list[Row], path: Path) -> list[Path]:
    """Accuracy at every learning rate that was tried; nothing if there is one."""
    if len({lr for row in rows for lr in row.accuracies}) < 2:
        return []
    lines = _by_row(rows, lambda row: {lr: 100 * accuracy for lr, accuracy in row.accuracies.items()})
    return _draw([Panel("", "learning rate", lines, lambda lr: f"{lr:.2g}")], path)


def _by_row(rows: list[Row], points: Callable[[Row], dict[float, float]]) -> list[Line]:
    return [
        Line(row.name, curve, place, points(row)) for curve in make_curves(rows) for place, row in enumerate(curve.rows)
    ]


def _draw(panels: list[Panel], path: Path) -> list[Path]:
    if not panels:
        return []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5 * len(panels) + 3, 4.6), dpi=DPI, layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for place, panel in zip(axes, panels, strict=True):
            _fill(place, panel.lines)
            ticks = sorted({x for line in panel.lines for x in line.points})
            place.set_xscale("log")
            place.set_xticks(ticks, [panel.show(tick) for tick in ticks])
            place.set_xticks([], minor=True)
            place.set_xlabel(panel.xlabel)
            place.set_title(panel.title)
        axes[0].set_ylabel("answers right (%)")
        axes[0].set_ylim(-4, 104)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
        return save(figure, path)


def _fill(axes: Axes, lines: list[Line]) -> None:
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for line in lines:
        axes.plot(
            *zip(*line.points.items(), strict=True),
            label=line.name,
            color=line.curve.look.colour,
            marker=line.curve.look.marker,
            linestyle=LINESTYLES[line.place % len(LINESTYLES)],
            linewidth=2.4 if line.curve.baseline else 1.4,
        )
