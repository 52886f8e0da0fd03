"""The frontier for papers: accuracy against bytes of state, tokens trained a second, and tokens decoded a second."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ._costs import Cost, costs
from ._records import Row
from ._style import Curve, make_curves

DPI = 150
INK, FAINT, GREY = "#222222", "#E4E4E4", "#777777"
STYLE = {
    "font.size": 10, "axes.edgecolor": GREY, "text.color": INK, "axes.labelcolor": INK, "svg.hashsalt": "subquad",
}  # fmt: skip
ACCURACY_RANGE = (-4, 112)  # in %, with room for labels above 100
MARKER_RADIUS = 5.0  # points, as all distances below
POINTS_PER_INCH = 72
LINE_SAMPLES = 60
LABEL_DISTANCES = (8, 16, 26, 38, 52, 68)
FREE_OF_LEADER = 16  # a label farther off than this is tied to its point by a line
# Directions in which a label may stand beside its point, in order of preference.
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
ALIGNMENTS = {1: ("left", "bottom"), 0: ("center", "center"), -1: ("right", "top")}


def draw_frontier(rows: list[Row], path: Path, title: str) -> list[Path]:
    """A panel for each cost, which share the axis of accuracy, a label beside every point or curve.

    Returns:
        the paths with .png and .svg.
    """
    curves, shown = make_curves(rows), costs(rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6 * len(shown), 5.4), dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        panels = [_Panel(place, rows, curves, cost) for place, cost in zip(axes, shown, strict=True)]
        axes[0].set_ylabel("answers right (%)")
        axes[0].set_ylim(*ACCURACY_RANGE)
        axes[0].set_yticks(range(0, 101, 20))
        figure.suptitle(title, x=0.008, ha="left", fontsize=12)
        canvas.draw()
        for panel in panels:
            panel.place_labels()
        return save(figure, path)


def save(figure: Figure, path: Path) -> list[Path]:
    """As PNG and as SVG, without the date, so that the same records give the same bytes."""
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    figure.savefig(written[0])
    figure.savefig(written[1], metadata={"Date": None})
    return written


class _Panel:
    """One scatter of accuracy against a cost, and the labels beside its points."""

    def __init__(self, axes: Axes, rows: list[Row], curves: list[Curve], cost: Cost):
        self.axes = axes
        self.cost = cost
        self.curves = [replace(curve, rows=[row for row in curve.rows if cost.of(row) is not None]) for curve in curves]
        self.curves = [curve for curve in self.curves if curve.rows]
        axes.set_xscale("log")
        axes.set_xlim(*cost.range(rows))
        axes.set_xticks(cost.ticks(rows), [cost.show(x) for x in cost.ticks(rows)])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(f"{cost.title} (log scale)")
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        for curve in self.curves:
            self._draw(curve)
        self.baseline = max((100 * row.accuracy for row in rows if row.baseline), default=None)
        if self.baseline is not None:
            axes.axhline(self.baseline, color=INK, linewidth=1, linestyle=(0, (5, 4)), zorder=1)

    def _draw(self, curve: Curve) -> None:
        """A line through its rows, and through each a bar as long as the best and the worst seed are apart."""
        points = [self._point(row) for row in curve.rows]
        for row, (x, y) in zip(curve.rows, points, strict=True):
            half = 50 * row.spread
            self.axes.vlines(x, y - half, y + half, color=curve.look.colour, linewidth=2, zorder=2)
        self.axes.plot(
            *zip(*points, strict=True),
            marker=curve.look.marker,
            color=curve.look.colour,
            markersize=16 if curve.baseline else 9,
            markeredgecolor="white",
            linewidth=1.2,
            zorder=4 if curve.baseline else 3,
        )

    def place_labels(self) -> None:
        """Put each label at the nearest place free of points, lines and other labels, the uppermost first."""
        taken = [*self._drawn()]
        labels = [(self._point(row), text, curve) for curve in self.curves for row, text in curve.labels()]
        for point, text, curve in sorted(labels, key=lambda label: -label[0][1]):
            taken.append(self._place(point, text, curve, taken))

    def _point(self, row: Row) -> tuple[float, float]:
        return self.cost.of(row), 100 * row.accuracy

    def _drawn(self) -> Iterator[Bbox]:
        """Boxes, in pixels, around everything that a label must not cover."""
        radius = MARKER_RADIUS * self.axes.figure.dpi / POINTS_PER_INCH
        for curve in self.curves:
            corners = self.axes.transData.transform([self._point(row) for row in curve.rows])
            for x, y in corners:
                yield Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
            for start, end in pairwise(corners):
                for x, y in np.linspace(start, end, num=LINE_SAMPLES):
                    yield Bbox.from_extents(x - 1, y - 1, x + 1, y + 1)
        if self.baseline is not None:
            panel = self.axes.get_window_extent()
            _, y = self.axes.transData.transform((1.0, self.baseline))
            yield Bbox.from_extents(panel.x0, y - 1, panel.x1, y + 1)

    def _place(self, point: tuple[float, float], label: str, curve: Curve, taken: list[Bbox]) -> Bbox:
        text = self.axes.annotate(
            label,
            point,
            xytext=(0, 0),
            textcoords="offset points",
            color=_darker(curve.look.colour),
            fontweight="bold" if curve.baseline else "normal",
            annotation_clip=False,
            zorder=5,
        )
        best = None
        for dx, dy, ha, va in _places():
            text.set(position=(dx, dy), ha=ha, va=va)
            box = text.get_window_extent()
            overlap = sum(_overlap(box, other) for other in taken) + self._outside(box)
            if best is None or overlap < best[0]:
                best = overlap, (dx, dy, ha, va), box
            if overlap == 0:
                break
        _, (dx, dy, ha, va), box = best
        text.set(position=(dx, dy), ha=ha, va=va)
        if max(abs(dx), abs(dy)) > FREE_OF_LEADER:
            self.axes.annotate(
                "", point, (dx, dy), textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": curve.look.colour, "linewidth": 0.7, "shrinkB": MARKER_RADIUS},
            )  # fmt: skip
        return box

    def _outside(self, box: Bbox) -> float:
        """Area of the label that would lie outside the panel."""
        inside = self.axes.get_window_extent()
        return box.width * box.height - _overlap(box, inside)


def _places() -> Iterator[tuple[float, float, str, str]]:
    """Offsets from a point and the alignments that keep the label on that side, nearest first."""
    for distance in LABEL_DISTANCES:
        for sx, sy in DIRECTIONS:
            diagonal = 0.7 if sx and sy else 1
            yield sx * distance * diagonal, sy * distance * diagonal, ALIGNMENTS[sx][0], ALIGNMENTS[sy][1]


def _darker(colour: str) -> tuple[float, ...]:
    """The same hue for thin letters, which need more contrast than a marker."""
    return tuple(0.75 * part for part in to_rgb(colour))


def _overlap(a: Bbox, b: Bbox) -> float:
    """Area that two boxes share."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, width) * max(0.0, height)
