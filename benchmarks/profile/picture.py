"""The roofline: what each pass and each kernel achieves against what the GPU could do at its arithmetic intensity."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..report._style import COLOURS, MARKERS
from .calls import Subject
from .measure import OURS, Measured
from .model import PassModel
from .roof import KINDS, Roof
from .work import pass_flops

DPI = 150
INK, FAINT, GREY = "#222222", "#E4E4E4", "#777777"
LINES = {"half": "-", "tf32": (0, (6, 3)), "float": (0, (1, 2))}
MARGIN = 4.0  # factor by which the axes go past the outermost points
LARGE, SMALL = 10, 6  # markers of passes and of kernels


@dataclass(frozen=True)
class Point:
    """A pass, or a kernel of one.

    group: whose it is; points of one group look alike.
    intensity: FLOP for each byte.
    tflops: 10^12 FLOP/s.
    """

    group: str
    label: str
    intensity: float
    tflops: float
    is_pass: bool


def measured_points(found: Sequence[Measured]) -> list[Point]:
    """Every pass with FLOP by its equation, and our kernels that multiply matrices."""
    points = []
    for one in found:
        for measured in one.passes:
            points += _point(one.name, measured.name, measured.num_bytes, measured.flops, measured.microseconds, True)
            for kernel in measured.kernels:
                points += _point(one.name, kernel.name, kernel.num_bytes, kernel.flops, kernel.microseconds, False)
    return points


def modelled_points(subject: Subject, passes: Iterable[PassModel]) -> list[Point]:
    """The same at the lower bound of the time: where the model would have a pass or a kernel at best."""
    points, flops = [], pass_flops(subject) or {}
    for one in passes:
        points += _point(OURS, one.name, one.compulsory_bytes, flops.get(one.name), one.microseconds, True)
        for kernel in one.kernels:
            counted = kernel.traffic and kernel.traffic.flops
            points += _point(OURS, kernel.name, kernel.device_bytes, counted, kernel.microseconds, False)
    return points


def draw_roofline(points: Sequence[Point], roof: Roof, title: str, path: Path) -> None:
    """Both axes logarithmic; a point on the roof could not be faster. Says so in the picture if there is no point."""
    with matplotlib.rc_context({"font.size": 10, "axes.edgecolor": GREY, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=(9.5, 5.6), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("arithmetic intensity (FLOP a byte, log scale)")
        axes.set_ylabel("TFLOP/s (log scale)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        low, high = _range(points, roof)
        axes.set_xlim(low, high)
        _draw_roof(axes, roof, low, high)
        _draw_points(axes, points)
        if not points:
            axes.text(0.5, 0.5, "no pass whose FLOP are known", ha="center", color=GREY, transform=axes.transAxes)
        if points or roof.tflops:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5)
        figure.suptitle(title, x=0.008, ha="left", fontsize=11)
        figure.savefig(path)


def _point(
    group: str, label: str, num_bytes: int | None, flops: dict[str, int] | None, microseconds: float, is_pass: bool
) -> list[Point]:
    """None where bytes, FLOP or time are not known or zero: a logarithmic axis has no place for it."""
    count = sum(flops.values()) if flops else 0
    if not (num_bytes and count and microseconds):
        return []
    return [Point(group, label.removesuffix("_kernel"), count / num_bytes, count / (microseconds * 1e6), is_pass)]


def _range(points: Sequence[Point], roof: Roof) -> tuple[float, float]:
    """Wide enough for all points and for the ridge, where the highest roof bends."""
    places = [point.intensity for point in points]
    if roof.bandwidth_gb is not None and roof.tflops:
        places.append(max(roof.tflops.values()) * 1e3 / roof.bandwidth_gb)
    places = places or [1.0, 100.0]
    return min(places) / MARGIN, max(places) * MARGIN


def _draw_roof(axes: Axes, roof: Roof, low: float, high: float) -> None:
    slope = None if roof.bandwidth_gb is None else roof.bandwidth_gb / 1e3  # TFLOP/s at one FLOP a byte
    top = max(roof.tflops.values(), default=None)
    if slope is not None:
        end = high if top is None else min(high, top / slope)
        axes.plot([low, end], [low * slope, end * slope], color=INK, linewidth=1.6, zorder=2)
    for kind, peak in roof.tflops.items():
        start = low if slope is None else max(low, peak / slope)
        axes.plot([start, high], [peak, peak], color=INK, linewidth=1.4, linestyle=LINES[kind], zorder=2,
                  label=f"peak on {KINDS[kind]}")  # fmt: skip


def _draw_points(axes: Axes, points: Sequence[Point]) -> None:
    """Filled and large for passes, hollow and small for kernels; each has a line in the legend."""
    groups = list(dict.fromkeys(point.group for point in points))
    seen: dict[str, int] = {}
    for point in points:
        index = groups.index(point.group)
        nth = seen[point.group] = seen.get(point.group, -1) + 1
        colour = COLOURS[index % len(COLOURS)]
        # A group has its colour; within it, markers tell apart.
        marker = MARKERS[nth % len(MARKERS)][0]
        axes.plot(
            point.intensity, point.tflops, linestyle="none", marker=marker, color=colour, markeredgewidth=1.4,
            markersize=LARGE if point.is_pass else SMALL, markeredgecolor="white" if point.is_pass else colour,
            markerfacecolor=colour if point.is_pass else "white", zorder=4 if point.is_pass else 3,
            alpha=0.85, label=f"{point.group}: {point.label}",
        )  # fmt: skip
