"""`subquad check --static`: every kernel compiled for GPUs that are not there, and held to the stored budget."""

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from subquad.kernels import OPS, _dispatch

from ..profile.targets import GPUS
from .budget import RESULTS, SUMMARY_HEAD, TABLE, load, store, summary, without_current
from .cases import FAST_TARGET, cases_of, dtypes_of, fast_cases
from .compiling import Part, compile_parts
from .rows import Row, violations
from .tritons import NEWEST, Triton, find_triton, installed

PROCESSES = 2


def run_static(
    *,
    ops: Sequence[str] = OPS,
    targets: Sequence[str] = tuple(GPUS),
    triton: str | None = None,
    update: bool = False,
    fast: bool = False,
    folder: Path = RESULTS,
) -> int:
    """Compile every call of `cases.py` for every target, and compare with the budget or, with `update`, store it.

    Prints a summary and a line for each violation: an error, a spill in a hot loop that `rows.MAY_SPILL` does not
    excuse, shared memory over the limit of the target, and whatever is above the stored budget. Nothing is run, so no
    GPU is needed.

    Args:
        ops, targets: names from OPS and GPUS.
        triton: a version, or a folder that holds Triton; the installed one and NEWEST if None.
        update: store what is found as the new budget, each part when it is done; what is stored already and was made
            of the same sources, with the same configurations, by the same Triton is not compiled again.
        fast: one call of each op, for one target with the installed Triton.
        folder: of the budget.

    Returns:
        The exit code: 1 if there is a violation, else 0.

    Raises:
        ValueError: an unknown name, a Triton that cannot be had, options that exclude each other, or a process whose
            kernels Triton interprets.
    """
    for what, names, known in (("op", ops, OPS), ("target", targets, tuple(GPUS))):
        for name in names:
            if name not in known:
                raise ValueError(f"check: unknown {what} {name!r}; expected some of {', '.join(known)}")
    if fast and update:
        raise ValueError("check: --fast compiles a few calls only, which are no budget; use --update without it")
    if _dispatch.INTERPRET:
        raise ValueError("check: TRITON_INTERPRET=1 turns the compiler off; unset it")
    stored = load(folder)
    if fast:
        parts = [Part(case.op, FAST_TARGET, installed(), (case,)) for case in fast_cases() if case.op in ops]
    else:
        parts = _parts(ops, targets, _tritons(triton))
    waiting = [part for part in (without_current(x, stored) for x in parts) if part.cases] if update else parts
    console = Console()
    found = _compile(console, waiting, folder if update else None)
    if update:
        chosen = {(part.op, part.target, part.triton.version) for part in parts}
        found = stored = [row for row in load(folder) if (row.op, row.target, row.triton) in chosen]
        wanted, missing = (sum(len(part.cases) for part in some) for some in (parts, waiting))
        console.print(f"{wanted - missing} of {wanted} calls were stored already", highlight=False)
    return _report(console, found, stored, folder / TABLE if update else None)


def _tritons(name: str | None) -> list[Triton]:
    if name is not None:
        return [find_triton(name)]
    return [installed()] if installed().version == NEWEST else [installed(), find_triton(NEWEST)]


def _parts(ops: Sequence[str], targets: Sequence[str], tritons: list[Triton]) -> list[Part]:
    return [
        Part(op, target, triton, tuple(case for case in cases_of(op, target) if case.dtype == dtype))
        for triton in tritons for op in ops for target in targets for dtype in dtypes_of(target)
    ]  # fmt: skip


def _compile(console: Console, parts: list[Part], folder: Path | None) -> list[Row]:
    """Rows of all parts; those of each are stored in the folder, if one is given, when it is done."""
    found: list[Row] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("compiling", total=len(parts))

        def finish(part: Part, rows: list[Row]) -> None:
            found.extend(rows)
            if folder is not None:
                store(rows, folder)
            progress.advance(task)
            console.print(f"compiled {part.label}: {len(rows)} calls", highlight=False)

        compile_parts(parts, PROCESSES, finish)
    return found


def _report(console: Console, found: list[Row], stored: list[Row], written: Path | None) -> int:
    table = Table(box=SIMPLE, pad_edge=False)
    for column in SUMMARY_HEAD:
        table.add_column(column, no_wrap=column == "op")
    for line in summary(found):
        table.add_row(*line)
    console.print(table)
    budget = {row.key: row for row in stored}
    failures = [message for row in found for message in violations(row, budget.get(row.key))]
    for message in failures:
        console.print(message, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(failures)} violations in {len(found)} calls", highlight=False)
    if written is not None:
        console.print(f"wrote {written}", soft_wrap=True)
    return int(bool(failures))
