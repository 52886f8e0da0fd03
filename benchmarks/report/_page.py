"""report.html: one file that needs no network, with the frontier, loss curves, the table and the settings."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from ._costs import costs
from ._records import Results, Row
from ._style import Curve, make_curves
from ._tables import explain, make_columns
from ._template import PAGE

LAYOUT = {
    "template": "simple_white",
    "font": {"family": "system-ui, sans-serif", "size": 14},
    "margin": {"l": 64, "r": 16, "t": 16, "b": 60},
    "legend": {"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0},
    "hoverlabel": {"align": "left"},
}
# plotly.js offers by default to upload what it shows; a report of local records has no business with that.
CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["sendChartToCloud"]}
DASHED = {"dash": "dash", "width": 1, "color": "#222222"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
GRID = {"showgrid": True, "gridcolor": "#e4e4e4"}


def write_page(results: Results, path: Path, title: str) -> None:
    """Everything the page shows stands in it, plotly.js included."""
    rows = results.rows
    run, curves = rows[0].longest, make_curves(rows)
    levers = {f"lever: {name}": lever for name, lever in run.levers.items()}
    page = PAGE.substitute(
        title=escape(title),
        plotlyjs=get_plotlyjs(),
        frontier=_embed(frontier(rows, curves)),
        table=_table(rows),
        caption=escape(explain(results)),
        curves=_embed(loss_curves(curves)),
        grid=_learning_rates(curves),
        settings=_definitions({"recipe": run.recipe, "task": run.task} | _settings(rows)),
        environment=_definitions(levers | run.environment),
    )
    path.write_text(page, encoding="utf-8")


def frontier(rows: list[Row], curves: list[Curve]) -> go.Figure:
    """Accuracy against each cost, the baseline's accuracy as a line across."""
    shown = costs(rows)
    figure = make_subplots(cols=len(shown), shared_yaxes=True, horizontal_spacing=0.04)
    for col, cost in enumerate(shown, start=1):
        for curve in curves:
            _add_points(figure, col, curve, [cost.of(row) for row in curve.rows])
        ticks = cost.ticks(rows)
        figure.update_xaxes(
            type="log",
            range=[math.log10(bound) for bound in cost.range(rows)],
            title=f"{cost.title} (log scale)",
            tickvals=ticks,
            ticktext=[cost.show(x) for x in ticks],
            col=col,
            **GRID,
        )
    if accuracies := [100 * row.accuracy for row in rows if row.baseline]:
        figure.add_hline(max(accuracies), line=DASHED)
    figure.update_yaxes(range=[-3, 105], **GRID)
    figure.update_yaxes(title="answers right (%)", col=1)
    return figure.update_layout(**LAYOUT, height=540)


def loss_curves(curves: list[Curve]) -> go.Figure:
    """Loss against step at the best learning rate: the first seed of each row's model of the longest tests."""
    figure = go.Figure()
    for row, line in _lines(curves):
        figure.add_scatter(
            x=[step for step, _ in row.longest.loss_curve],
            y=[loss for _, loss in row.longest.loss_curve],
            name=f"{row.name}, lr {row.longest.lr:.2g}",
            mode="lines",
            line=line,
        )
    figure.update_xaxes(title="optimiser steps", **GRID)
    figure.update_yaxes(title="loss at the answers", rangemode="tozero", **GRID)
    return figure.update_layout(**LAYOUT, height=460)


def _learning_rates(curves: list[Curve]) -> str:
    """The figure, or a sentence where there is nothing to compare."""
    tried = sorted({lr for curve in curves for row in curve.rows for lr in row.accuracies})
    if len(tried) < 2:
        return f"<p>One learning rate was tried: {', '.join(f'{lr:.2g}' for lr in tried)}.</p>"
    note = "Accuracy at every learning rate that was tried. A narrow peak belongs to a mixer that is hard to tune."
    return f"<p>{note}</p>{_embed(learning_rates(curves, tried))}"


def learning_rates(curves: list[Curve], tried: list[float]) -> go.Figure:
    figure = go.Figure()
    for row, line in _lines(curves):
        figure.add_scatter(
            x=list(row.accuracies),
            y=[100 * accuracy for accuracy in row.accuracies.values()],
            name=row.name,
            mode="lines+markers",
            marker={"size": 9},
            line=line,
        )
    ticks = [f"{lr:.2g}" for lr in tried]
    figure.update_xaxes(type="log", title="learning rate", tickvals=tried, ticktext=ticks, **GRID)
    figure.update_yaxes(title="answers right (%), mean over seeds", range=[-3, 105], **GRID)
    return figure.update_layout(**LAYOUT, height=460)


def _lines(curves: list[Curve]) -> Iterator[tuple[Row, dict]]:
    """Every row and its line: the colour of its mixer, and a dash of its own among the rows of that mixer."""
    drawn = Counter()
    for curve in curves:
        for row in curve.rows:
            dash = DASHES[drawn[row.mixer] % len(DASHES)]
            drawn[row.mixer] += 1
            yield row, {"color": curve.look.colour, "dash": dash, "width": 3 if curve.baseline else 2}


def _add_points(figure: go.Figure, col: int, curve: Curve, xs: list[float | None]) -> None:
    figure.add_scatter(
        x=xs,
        y=[100 * row.accuracy for row in curve.rows],
        col=col,
        row=1,
        name=f"{curve.name} (baseline)" if curve.baseline else curve.name,
        legendgroup=curve.name,
        showlegend=col == 1,
        mode="lines+markers",
        line={"color": curve.look.colour, "width": 1.5},
        marker={
            "symbol": curve.look.symbol,
            "size": 18 if curve.baseline else 11,
            "line": {"width": 1, "color": "white"},
        },
        error_y={"type": "data", "array": [50 * row.spread for row in curve.rows], "width": 0},
        text=[_details(row) for row in curve.rows],
        hovertemplate="%{text}<extra></extra>",
    )


def _details(row: Row) -> str:
    """What stands in the table's row, one line a column."""
    lines = [f"{column.heading}: {column.cells[0]}" for column in make_columns([row])[1:]]
    return "<br>".join([f"<b>{escape(row.name)}</b>", *map(escape, lines), f"parameters: {row.num_parameters:,}"])


def _table(rows: list[Row]) -> str:
    columns = make_columns(rows)
    head = "".join(f"<th><button>{escape(column.heading)}</button></th>" for column in columns)
    body = []
    for index, row in enumerate(rows):
        cells = "".join(
            f'<td data-key="{escape(str(column.keys[index]))}">{escape(column.cells[index])}</td>' for column in columns
        )
        body.append(f'<tr class="baseline">{cells}</tr>' if row.baseline else f"<tr>{cells}</tr>")
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"


def _settings(rows: list[Row]) -> dict:
    """Model, options and training of each row."""
    return {
        row.name: {
            "model": row.longest.model,
            "options": row.longest.options,
            "learning rates": list(row.accuracies),
            "seeds": [run.seed for run in row.choices[-1].runs],
            "steps": [run.steps for choice in row.choices for run in choice.runs],
            "seconds": [round(run.train_seconds, 1) for choice in row.choices for run in choice.runs],
        }
        for row in rows
    }


def _definitions(content: dict) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(_plain(value))}</dd>" for name, value in content.items())


def _plain(value) -> str:
    """Nested settings in one line: name value, name value."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value)


def _embed(figure: go.Figure) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG)
