"""Tables, pictures and a page, made from records.jsonl alone. Nothing here needs torch."""

from pathlib import Path

from rich.console import Console

from ._records import Results, Row, read_results
from ._tables import make_latex, make_markdown, make_table, natural_width

__all__ = ["latex_table", "markdown_table", "print_table", "write_report"]


def write_report(folder: Path) -> list[Path]:
    """Draw the figures as PNG and SVG and write report.html into the folder that holds records.jsonl.

    Returns:
        the paths: frontier.png first, report.html last.

    Raises:
        FileNotFoundError: no records.jsonl. ValueError: a damaged line, no finished run, or runs that cannot stand
            in one table.
    """
    from ._figure import draw_frontier
    from ._lines import draw_learning_rates, draw_sizes, draw_widths
    from ._page import write_page

    folder = Path(folder)
    results = _read(folder)
    rows, title = results.rows, describe(results.rows)
    page = folder / "report.html"
    written = draw_frontier(rows, folder / "frontier", title)
    written += draw_sizes(rows, folder / "sizes") + draw_widths(rows, folder / "widths")
    written += draw_learning_rates(rows, folder / "learning_rates")
    write_page(results, page, title)
    return [*written, page]


def print_table(folder: Path, console: Console | None = None) -> None:
    """Print the table of results, on a narrow terminal without the single tests. Raises as `write_report` does."""
    console = console or Console()
    results = _read(folder)
    table = make_table(results, describe(results.rows))
    width = natural_width(table)
    if not console.is_terminal:
        console.width = max(console.width, width)
    elif width > console.width:
        table = make_table(results, describe(results.rows), with_tests=False)
    console.print(table)


def markdown_table(folder: Path) -> str:
    """The same table as Markdown. Raises as `write_report` does."""
    return make_markdown(_read(folder))


def latex_table(folder: Path) -> str:
    """The same table for LaTeX with booktabs. Raises as `write_report` does."""
    return make_latex(_read(folder))


def describe(rows: list[Row]) -> str:
    """One line that says what was run and where."""
    run = rows[0].longest
    widths = sorted({row.d_model for row in rows})
    machine = run.environment["machine"]
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    where = machine["gpu"] or f"{machine['cpu']} with {threads}"
    return (
        f"Recall and its cost: recipe {run.recipe}, {run.model['num_layers']} layers, "
        f"width {', '.join(map(str, widths))}, on {where}"
    )


def _read(folder: Path) -> Results:
    return read_results(Path(folder))
