"""The figures of report.html, for plotly: accuracy against costs, by test, while learning, and by learning rate."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from html import escape
from itertools import cycle

import plotly.graph_objects as go

from ._costs import Cost
from ._records import SIZES, Row
from ._style import Curve
from ._tables import make_columns

HEIGHT = 380
BASELINE_META = "baseline"  # the page draws these in the colour of its text
DASHED = {"dash": "dash", "width": 1}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
LAYOUT = {
    "template": "simple_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 54, "r": 12, "t": 12, "b": 48},
    "height": HEIGHT,
    "showlegend": False,
    "hoverlabel": {"align": "left"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}
GRID = {"showgrid": True}
ACCURACY = {"title": "answers right (%)", "range": [-3, 105]}


def frontier(rows: list[Row], curves: list[Curve], cost: Cost) -> go.Figure:
    """Accuracy against one cost, the baseline's accuracy as a line across."""
    figure, ticks = go.Figure(), cost.ticks(rows)
    for curve in curves:
        figure.add_scatter(
            x=[cost.of(row) for row in curve.rows],
            y=[100 * row.accuracy for row in curve.rows],
            name=curve.name,
            meta=_meta(curve),
            mode="lines+markers",
            line={"color": curve.look.colour, "width": 1.5},
            marker={"symbol": curve.look.symbol, "size": 18 if curve.baseline else 11, "line": {"width": 0}},
            error_y={"type": "data", "array": [50 * row.spread for row in curve.rows], "width": 0},
            text=[_details(row) for row in curve.rows],
            hovertemplate="%{text}<extra></extra>",
        )
    if accuracies := [100 * row.accuracy for row in rows if row.baseline]:
        figure.add_hline(max(accuracies), line=DASHED)
    figure.update_xaxes(
        type="log",
        range=[math.log10(bound) for bound in cost.range(rows)],
        title=cost.title,
        tickvals=ticks,
        ticktext=[cost.show(x) for x in ticks],
        **GRID,
    )
    return _finished(figure, ACCURACY)


def by_size(curves: list[Curve], name: str) -> go.Figure:
    """Accuracy against a size of the tests, the mean over tests of one size."""
    figure, sizes = go.Figure(), set()
    for row, curve, line in _lines(curves):
        at = row.by_size(name)
        sizes |= set(at)
        figure.add_scatter(
            x=list(at),
            y=list(at.values()),
            name=row.name,
            meta=_meta(curve),
            mode="lines+markers",
            marker={"symbol": curve.look.symbol, "size": 9},
            line=line,
        )
    ticks = sorted(sizes)
    figure.update_xaxes(type="log", title=SIZES[name], tickvals=ticks, ticktext=[str(tick) for tick in ticks], **GRID)
    return _finished(figure, ACCURACY)


def by_width(curves: list[Curve]) -> go.Figure:
    """Accuracy against the width of the model, a dash for each test."""
    figure, widths = go.Figure(), sorted({row.d_model for curve in curves for row in curve.rows})
    for curve in curves:
        for test, dash in zip(curve.rows[0].segments, cycle(DASHES)):
            at = curve.by_width(test)
            figure.add_scatter(
                x=list(at),
                y=list(at.values()),
                name=f"{curve.name}, {test.label}",
                meta=_meta(curve),
                mode="lines+markers",
                marker={"symbol": curve.look.symbol, "size": 9},
                line={"color": curve.look.colour, "dash": dash, "width": 3 if curve.baseline else 2},
            )
    ticks = [str(width) for width in widths]
    figure.update_xaxes(type="log", title="width of the model", tickvals=widths, ticktext=ticks, **GRID)
    return _finished(figure, ACCURACY)


def losses(curves: list[Curve]) -> go.Figure:
    """Loss against step at the best learning rate: the first seed of each row's model of the longest tests."""
    figure = _learning(curves, lambda row: row.longest.loss_curve, 1)
    return _finished(figure, {"title": "loss", "rangemode": "tozero"})


def validations(curves: list[Curve]) -> go.Figure:
    """Accuracy against step, of the same trainings."""
    return _finished(_learning(curves, lambda row: row.longest.accuracy_curve, 100), ACCURACY)


def _learning(curves: list[Curve], points: Callable, scale: float) -> go.Figure:
    figure = go.Figure()
    for row, curve, line in _lines(curves):
        steps, values = zip(*points(row), strict=True)
        figure.add_scatter(
            x=steps,
            y=[None if value is None else scale * value for value in values],
            name=f"{row.name}, lr {row.longest.lr:.2g}",
            meta=_meta(curve),
            mode="lines",
            line=line,
        )
    figure.update_xaxes(title="optimiser steps", **GRID)
    return figure


def learning_rates(curves: list[Curve], tried: list[float]) -> go.Figure:
    figure = go.Figure()
    for row, curve, line in _lines(curves):
        figure.add_scatter(
            x=list(row.accuracies),
            y=[100 * accuracy for accuracy in row.accuracies.values()],
            name=row.name,
            meta=_meta(curve),
            mode="lines+markers",
            marker={"symbol": curve.look.symbol, "size": 9},
            line=line,
        )
    ticks = [f"{lr:.2g}" for lr in tried]
    figure.update_xaxes(type="log", title="learning rate", tickvals=tried, ticktext=ticks, **GRID)
    return _finished(figure, ACCURACY)


def _finished(figure: go.Figure, y: dict) -> go.Figure:
    return figure.update_yaxes(**y, **GRID).update_layout(**LAYOUT)


def _meta(curve: Curve) -> list[str]:
    """The mixer, by which the page hides and shows, and whether it is the baseline."""
    return [curve.rows[0].mixer, *([BASELINE_META] if curve.baseline else [])]


def _lines(curves: list[Curve]) -> Iterator[tuple[Row, Curve, dict]]:
    """Every row and its line: the colour of its mixer, and a dash of its own among the rows of that mixer."""
    drawn = Counter()
    for curve in curves:
        for row in curve.rows:
            dash = DASHES[drawn[row.mixer] % len(DASHES)]
            drawn[row.mixer] += 1
            yield row, curve, {"color": curve.look.colour, "dash": dash, "width": 3 if curve.baseline else 2}


def _details(row: Row) -> str:
    """What stands in the table's row, one line a column."""
    lines = [f"{column.heading}: {column.cells[0]}" for column in make_columns([row])[1:]]
    return "<br>".join([f"<b>{escape(row.name)}</b>", *map(escape, lines), f"parameters: {row.num_parameters:,}"])
