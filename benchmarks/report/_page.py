"""report.html: one file that needs no network, with figures, tables and settings."""

import json
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from . import _plots
from ._costs import Cost, costs
from ._records import SIZES, Results, Row
from ._style import Curve, make_curves
from ._tables import Column, explain, make_columns, trial_columns

# plotly.js offers by default to upload what it shows; a report of local records has no business with that.
CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtonsToRemove": ["sendChartToCloud"]}


def write_page(results: Results, path: Path, title: str) -> None:
    """Everything the page shows stands in it, plotly.js included."""
    rows = results.rows
    run, curves = rows[0].longest, make_curves(rows)
    levers = {f"lever: {name}": lever for name, lever in run.levers.items()}
    page = Template(_part("page.html")).substitute(
        title=escape(title),
        style=_part("page.css"),
        script=_part("page.js"),
        plotlyjs=get_plotlyjs(),
        mixers=_switches(curves),
        frontier="".join(_frontier(rows, curves, cost) for cost in costs(rows)),
        sizes=_by_size(curves, rows),
        table=_table(make_columns(rows), [row.mixer for row in rows], {row.mixer for row in rows if row.baseline}),
        caption=escape(explain(results)),
        curves=_learning(curves),
        grid=_learning_rates(curves),
        trials=_table(trial_columns(results.runs), [run.mixer for run in results.runs], set()),
        num_trials=len(results.runs),
        settings=_definitions({"recipe": run.recipe, "task": run.task} | _settings(rows)),
        environment=_definitions(levers | run.environment),
    )
    path.write_text(page, encoding="utf-8")


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _switches(curves: list[Curve]) -> str:
    """A button for each mixer, in its colour, that hides and shows it everywhere."""
    looks = {curve.rows[0].mixer: curve for curve in curves}
    return "".join(
        f'<button type="button" aria-pressed="true" data-mixer="{escape(mixer)}">'
        f'<span class="swatch{" baseline" if curve.baseline else ""}" style="background:{curve.look.colour}"></span>'
        f"{escape(mixer)}{' (baseline)' if curve.baseline else ''}</button>"
        for mixer, curve in looks.items()
    )


def _frontier(rows: list[Row], curves: list[Curve], cost: Cost) -> str:
    """A panel, and its points in words."""
    points = ((row, cost.of(row)) for row in rows)
    told = "; ".join(f"{row.name}: {100 * row.accuracy:.1f} % at {cost.show(x)}" for row, x in points if x is not None)
    return _embed(_plots.frontier(rows, curves, cost), f"Accuracy against {cost.title}", told)


def _by_size(curves: list[Curve], rows: list[Row]) -> str:
    """A figure for each size in which the tests or the models differ, or a sentence if they differ in none."""
    drawn = []
    for name, title in SIZES.items():
        if len(rows[0].by_size(name)) > 1:
            last = {row.name: list(row.by_size(name).items())[-1] for row in rows}
            told = "; ".join(f"{row}: {accuracy:.1f} % at {size}" for row, (size, accuracy) in last.items())
            drawn.append(_embed(_plots.by_size(curves, name), f"Accuracy by {title}", told))
    if rows[0].has_width:
        told = "; ".join(f"{row.name}: {100 * row.accuracy:.1f} %" for row in rows)
        drawn.append(_embed(_plots.by_width(curves), "Accuracy by width of the model", told))
    return "".join(drawn) or "<p>All tests are of one size.</p>"


def _learning(curves: list[Curve]) -> str:
    rows = [row for curve in curves for row in curve.rows]
    told = "; ".join(f"{row.name}: {row.longest.steps} steps" for row in rows)
    return _embed(_plots.losses(curves), "Loss while learning", told) + _embed(
        _plots.validations(curves), "Accuracy while learning", told
    )


def _learning_rates(curves: list[Curve]) -> str:
    """The figure, or a sentence where there is nothing to compare."""
    rows = [row for curve in curves for row in curve.rows]
    tried = sorted({lr for row in rows for lr in row.accuracies})
    if len(tried) < 2:
        return f"<p>One learning rate was tried: {', '.join(f'{lr:.2g}' for lr in tried)}.</p>"
    note = "Accuracy at every learning rate that was tried. A narrow peak belongs to a mixer that is hard to tune."
    told = "; ".join(f"{row.name}: {len(row.working_lrs)} of {len(tried)} learning rates work" for row in rows)
    figure = _embed(_plots.learning_rates(curves, tried), "Accuracy by learning rate", told)
    return f'<p>{note}</p><div class="plots">{figure}</div>'


def _embed(figure: go.Figure, what: str, told: str) -> str:
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG, default_height=_plots.HEIGHT)
    hidden = f'<figcaption class="unseen">{escape(told)}</figcaption>'
    return f'<figure aria-label="{escape(what)}"><h3>{escape(what)}</h3>{drawn}{hidden}</figure>'


def _table(columns: list[Column], mixers: list[str], baselines: set[str]) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(c.heading)}</button></th>' for c in columns)
    body = "".join(_row(columns, index, mixer, mixer in baselines) for index, mixer in enumerate(mixers))
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def _row(columns: list[Column], index: int, mixer: str, baseline: bool) -> str:
    cells = "".join(f'<td data-key="{escape(str(c.keys[index]))}">{escape(c.cells[index])}</td>' for c in columns)
    return f'<tr data-mixer="{escape(mixer)}"{" class=baseline" if baseline else ""}>{cells}</tr>'


def _settings(rows: list[Row]) -> dict:
    """Model, options and training of each row."""
    return {
        row.name: {
            "model": row.longest.model,
            "options": row.longest.options,
            "learning rates": list(row.accuracies),
            "seeds": [run.seed for run in row.choices[-1].runs],
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
