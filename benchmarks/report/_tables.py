"""The table of results: its cells, on the terminal, as Markdown and for the page."""

from collections.abc import Callable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ._records import Results, Row, Run, Test

NOT_MEASURED = "-"
LINE_BREAK = r" \\ "  # of LaTeX
UNBOUNDED = 1000  # a terminal wider than any table


@dataclass(frozen=True)
class Column:
    """A heading in lines and, for each row, what is shown and the number by which to sort."""

    lines: tuple[str, ...]
    cells: list[str]
    keys: list[float | str]

    @property
    def heading(self) -> str:
        return " ".join(self.lines)


def make_columns(rows: list[Row], with_tests: bool = True) -> list[Column]:
    """Every column of the table; widths stand in it only where they differ, single tests only `with_tests`."""
    columns = [_column(("mixer",), rows, lambda row: row.label, str)]
    if len({row.d_model for row in rows}) > 1:
        columns.append(_column(("width",), rows, lambda row: row.d_model, str))
    tests = rows[0].segments
    for test in tests if with_tests and len(tests) > 1 else ():
        columns.append(_column(_test_heading(test), rows, lambda row, test=test: row.segments[test], _percent))
    heading = ("mean",) if len(tests) > 1 else _test_heading(*tests)
    columns.append(Column(heading, [_accuracy(row) for row in rows], [row.accuracy for row in rows]))
    columns.append(_column(("state",), rows, lambda row: row.state_bytes, format_bytes))
    columns.append(_column(("train", "tok/s"), rows, lambda row: row.tokens_per_second("train"), format_count))
    columns.append(_column(("prefill", "tok/s"), rows, lambda row: row.tokens_per_second("prefill"), format_count))
    if context := longest_context(rows):
        heading = ("decode", "ms/tok", f"at {context}")
        columns.append(_column(heading, rows, lambda row: row.decode.get(context), _milliseconds))
    columns.append(Column(("best lr",), [_learning_rates(row) for row in rows], [row.longest.lr for row in rows]))
    return columns


def trial_columns(runs: list[Run]) -> list[Column]:
    """Every training by itself."""
    return [
        _column(("mixer",), runs, lambda run: run.mixer, str),
        _column(("options",), runs, lambda run: _options(run.options), str),
        _column(("width",), runs, lambda run: run.model["d_model"], str),
        _column(("tests",), runs, lambda run: ", ".join(part["label"] for part in run.segments), str),
        _column(("lr",), runs, lambda run: run.lr, lambda lr: f"{lr:.2g}"),
        _column(("seed",), runs, lambda run: run.seed, str),
        _column(("accuracy",), runs, lambda run: run.accuracy, _percent),
        _column(("each test",), runs, lambda run: " / ".join(_percent(part["accuracy"]) for part in run.segments), str),
        _column(("steps",), runs, lambda run: run.steps, str),
        _column(("seconds",), runs, lambda run: run.train_seconds, lambda seconds: f"{seconds:.0f}"),
        _column(("note",), runs, lambda run: "diverged" if run.diverged else "", str),
    ]


def make_table(results: Results, title: str, *, with_tests: bool = True) -> Table:
    """For the terminal, which has no room for the last column, the learning rates."""
    columns = make_columns(results.rows, with_tests)[:-1]
    table = Table(
        title=title,
        title_justify="left",
        caption=explain(results),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        table.add_column("\n".join(column.lines), justify="right" if index else "left", vertical="bottom", no_wrap=True)
    for index, row in enumerate(results.rows):
        table.add_row(*(column.cells[index] for column in columns), style="bold" if row.baseline else None)
    return table


def natural_width(table: Table) -> int:
    """Columns of a terminal that show the table uncut."""
    console = Console(width=UNBOUNDED)
    return table.__rich_measure__(console, console.options).maximum


def make_markdown(results: Results) -> str:
    columns = make_columns(results.rows)
    lines = [
        " | ".join(column.heading for column in columns),
        " | ".join("---:" if index else "---" for index in range(len(columns))),
        *(" | ".join(column.cells[index] for column in columns) for index in range(len(results.rows))),
    ]
    note = f"{explain(results)} Best lr: in brackets, the learning rates of the grid within 5 % of the best."
    return "\n".join(f"| {line} |" for line in lines) + f"\n\n{note}\n"


def make_latex(results: Results) -> str:
    """A table for a paper, with booktabs; the learning rates are left out."""
    columns = make_columns(results.rows)[:-1]
    head = " & ".join(rf"\shortstack[r]{{{LINE_BREAK.join(map(_tex, column.lines))}}}" for column in columns)
    lines = [" & ".join(_tex(column.cells[index]) for column in columns) for index in range(len(results.rows))]
    return "\n".join(
        [
            f"% {explain(results)}",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{line} \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _tex(text: str) -> str:
    for plain, escaped in (("_", r"\_"), ("%", r"\%"), ("±", r"$\pm$"), ("&", r"\&"), ("#", r"\#")):
        text = text.replace(plain, escaped)
    return text


def _options(options: dict) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())


def explain(results: Results) -> str:
    """What the columns mean and which rows are missing, in full sentences."""
    choices = [choice for row in results.rows for choice in row.choices]
    num_seeds = max(len(choice.runs) for choice in choices)
    num_lrs = max(len(choice.accuracies) for choice in choices)
    lrs = f"at the best of {num_lrs} learning rates" if num_lrs > 1 else "at one learning rate"
    seeds = f"over {num_seeds} seeds, ± half the distance from best to worst" if num_seeds > 1 else "one seed"
    missing = f" Left out, for they lack tests: {', '.join(results.unfinished)}." if results.unfinished else ""
    missing += f" Failed: {'; '.join(results.failed)}." if results.failed else ""
    of_mqar = next((test.label for test in results.rows[0].segments if " in " in test.label), None)
    example = ""
    if of_mqar is not None:
        pairs, length = of_mqar.split(" in ")
        example = f'; "{of_mqar}" is the test with {pairs} pairs in {length} tokens'
    return (
        f"Accuracy in % of the answers{example}. Mean: over the tests, "
        f"{lrs}, {seeds}. State: bytes that one sequence carries. Decoding: one sequence.{missing}"
    )


def longest_context(rows: list[Row]) -> int | None:
    """The longest context after which every row that decoded was measured."""
    measured = [set(row.decode) for row in rows if row.decode]
    return max(set.intersection(*measured), default=None) if measured else None


def format_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def format_count(count: float) -> str:
    """Three significant digits: 987, 12.3k, 4.56M."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{suffix}"
    return f"{count:.3g}"


def _test_heading(test: Test) -> tuple[str, ...]:
    return tuple(test.label.replace("(", " (").rsplit(" ", 1))


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}"


def _milliseconds(count: float) -> str:
    return f"{count:.3g}"


def _accuracy(row: Row) -> str:
    return _percent(row.accuracy) + (f" ±{50 * row.spread:.1f}" if len(row.choices[0].runs) > 1 else "")


def _learning_rates(row: Row) -> str:
    """The best learning rate, of each model where they differ, and those of the grid that work."""
    best = " / ".join(dict.fromkeys(f"{choice.lr:.2g}" for choice in row.choices))
    tried, working = len(row.accuracies), row.working_lrs
    if tried < 2:
        return best
    span = f"{min(working):.2g} to {max(working):.2g}, " if len(working) > 1 else ""
    return f"{best} ({span}{len(working)} of {tried})"


def _column(heading: tuple[str, ...], rows: list[Row] | list[Run], value: Callable, show: Callable) -> Column:
    values = [value(row) for row in rows]
    cells = [NOT_MEASURED if found is None else show(found) for found in values]
    return Column(heading, cells, [-1.0 if found is None else found for found in values])
