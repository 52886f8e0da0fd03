"""Lines for papers: accuracy by the size of the test, and by learning rate."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._figure import DPI, FAINT, STYLE, save
from ._records import SIZES, Row
from ._style import Curve, make_curves

LINESTYLES = ("-", "--", ":", "-.")


def draw_sizes(rows: list[Row], path: Path) -> list[Path]:
    """A panel for each size in which the tests differ; nothing is drawn if they differ in none."""
    panels = [
        (title, {row.name: row.by_size(name) for row in rows}, str)
        for name, title in SIZES.items()
        if len(rows[0].by_size(name)) > 1
    ]
    return _draw(rows, panels, path)


def draw_learning_rates(rows: list[Row], path: Path) -> list[Path]:
    """Accuracy at every learning rate that was tried; nothing if there is one."""
    points = {row.name: {lr: 100 * accuracy for lr, accuracy in row.accuracies.items()} for row in rows}
    tried = {lr for row in rows for lr in row.accuracies}
    return _draw(rows, [("learning rate", points, lambda lr: f"{lr:.2g}")] if len(tried) > 1 else [], path)


def _draw(rows: list[Row], panels: list[tuple[str, dict, Callable]], path: Path) -> list[Path]:
    if not panels:
        return []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5 * len(panels) + 3, 4.6), dpi=DPI, layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for place, (title, points, show) in zip(axes, panels, strict=True):
            _fill(place, make_curves(rows), points)
            ticks = sorted({x for line in points.values() for x in line})
            place.set_xscale("log")
            place.set_xticks(ticks, [show(tick) for tick in ticks])
            place.set_xticks([], minor=True)
            place.set_xlabel(title)
        axes[0].set_ylabel("answers right (%)")
        axes[0].set_ylim(-4, 104)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
        return save(figure, path)


def _fill(axes: Axes, curves: list[Curve], points: dict[str, dict[float, float]]) -> None:
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for curve in curves:
        for index, row in enumerate(curve.rows):
            axes.plot(
                *zip(*points[row.name].items(), strict=True),
                label=row.name,
                color=curve.look.colour,
                marker=curve.look.marker,
                linestyle=LINESTYLES[index % len(LINESTYLES)],
                linewidth=2.4 if curve.baseline else 1.4,
            )
