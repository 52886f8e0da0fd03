"""The budget as a file of JSON lines, a row for each compiled call, and as a readable table made from it."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from subquad.kernels import OPS

from ..profile.targets import GPUS
from .cases import WIDTH_MEANS, Case, cases_of
from .compiling import Part
from .rows import MAY_SPILL, TRAFFIC_TOLERANCE, Row
from .sources import is_current

RESULTS = Path(__file__).parent.parent / "results"
SOURCE, TABLE = "compiled_kernels.jsonl", "compiled_kernels.md"
COMMAND = "subquad check --static"
ARCHITECTURES = {
    name: gpu.compiled_for.replace("cuda:", "sm_") if gpu.compiled_for.startswith("cuda") else gpu.compiled_for
    for name, gpu in GPUS.items()
}
SUMMARY_HEAD = (
    "op", "target", "calls", "errors", "hot spills", "loop spills", "worst spill", "most shared, KiB", "x forward",
    "x backward",
)  # fmt: skip

INTRODUCTION = f"""# Every Triton kernel, compiled ahead of time: the budget

Made by `{COMMAND} --update`, without a GPU; `{SOURCE}` beside this file holds the same numbers, and `{COMMAND}` fails
on what is above them (traffic: by more than {TRAFFIC_TOLERANCE:.0%}). Each launch is compiled as the op itself makes it at a real size, forward
and backward: same constants, warps, stages and alignment. Nothing was run, so nothing here is a time.

A cell reads traffic forward / backward, registers, spill, shared; of several kernels and Tritons the worst.
Traffic: bytes that must cross device memory, PyTorch's own operations included, over the compulsory ones (inputs and
outputs once); "?" where it depends on values in memory, "-" without a backward pass. Registers: of a thread. Spill: bytes a thread stores and loads for want of registers; "of which
n in loops" counts the instructions inside of loops, "n in the hot loop" one pass through it. Shared: KiB of a block.

Targets: {", ".join(f"{name} = {ARCHITECTURES[name]} ({gpu.block_shared_bytes >> 10} KiB a block)" for name, gpu in GPUS.items())}.
"""  # noqa: E501


def load(folder: Path = RESULTS) -> list[Row]:
    """What the folder holds; nothing if there is no file."""
    path = folder / SOURCE
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def store(rows: Iterable[Row], folder: Path = RESULTS) -> None:
    """Put rows in the place of those of the same calls, drop what is no case any more, and write both files anew.

    The file with the rows is replaced in one step: a kill leaves the old or the new one.
    """
    rows = list(rows)
    found = {row.key for row in rows}
    everything = rows + [row for row in load(folder) if row.key not in found and case_of(row) is not None]
    everything.sort(key=_place)
    folder.mkdir(exist_ok=True)
    half = folder / f"{SOURCE}.half"
    half.write_text("".join(json.dumps(asdict(row)) + "\n" for row in everything))
    half.replace(folder / SOURCE)
    (folder / TABLE).write_text("\n".join(_document(everything)))


def case_of(row: Row) -> Case | None:
    """What the row was compiled from; None if it is compiled no more."""
    same = (x for x in cases_of(row.op, row.target) if (x.label, x.width, x.dtype) == (row.case, row.width, row.dtype))
    return next(same, None)


def without_current(part: Part, stored: Iterable[Row]) -> Part:
    """The part with those of its cases for which nothing is stored, or something made of other sources."""
    rows = {row.key: row for row in stored}

    def is_stored(case: Case) -> bool:
        row = rows.get((case.op, case.label, case.width, case.dtype, part.target, part.triton.version))
        return row is not None and is_current(row, case)

    return replace(part, cases=tuple(case for case in part.cases if not is_stored(case)))


def summary(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """One line for each op and target, under SUMMARY_HEAD."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.op, row.target].append(row)
    return [
        (
            op,
            target,
            str(len(group)),
            str(sum(row.error is not None for row in group)),
            str(sum(row.hot_spill > 0 for row in group)),
            str(sum(row.loop_spill > 0 for row in group)),
            str(max(row.spill for row in group)),
            f"{max(row.shared for row in group) / 1024:.1f}",
            *(_most(group, name) for name in ("forward", "backward")),
        )
        for (op, target), group in groups.items()
    ]


def _place(row: Row) -> tuple:
    return OPS.index(row.op), row.width, row.case, row.dtype, list(GPUS).index(row.target), row.triton


def _most(group: list[Row], name: str) -> str:
    known = [row.traffic[name] for row in group if row.traffic.get(name) is not None]
    return f"{max(known):.2f}" if known else "?"


def _document(rows: list[Row]) -> Iterator[str]:
    yield INTRODUCTION
    yield f"Triton {', '.join(sorted({row.triton for row in rows}))}.\n"
    yield "## Summary\n"
    yield from _table(SUMMARY_HEAD, summary(rows))
    failed = [row for row in rows if row.error is not None]
    if failed:
        yield "\n## What does not compile\n"
        yield from _table(("call", "error"), [(row.label, row.error.replace("|", "/")) for row in failed])
    spilling = sorted((row for row in rows if row.loop_spill), key=lambda row: (-row.hot_spill, -row.loop_spill))
    if spilling:
        yield "\n## What spills in a loop\n"
        for what, why in MAY_SPILL:
            yield f"- {', '.join(map(str, what.values()))} may spill in its hot loop: {why}."
        yield ""
        yield from _table(
            ("call", "kernel", "hot loop", "all loops", "spill"),
            [(x.label, x.worst["loop_spill"], str(x.hot_spill), str(x.loop_spill), str(x.spill)) for x in spilling],
        )
    for op in dict.fromkeys(row.op for row in rows):
        yield f"\n## {op}\n\nWidth is the {WIDTH_MEANS[op]}.\n"
        yield from _op_table([row for row in rows if row.op == op])
    yield ""


def _op_table(rows: list[Row]) -> Iterator[str]:
    targets = [name for name in GPUS if any(row.target == name for row in rows)]
    lines = defaultdict(lambda: defaultdict(list))
    for row in rows:
        lines[row.case, str(row.width), row.dtype][row.target].append(row)
    yield from _table(
        ("case", "width", "dtype", *targets),
        [(*name, *(_cell(cells[target]) for target in targets)) for name, cells in lines.items()],
    )


def _cell(rows: list[Row]) -> str:
    """Of one call for one target by several Tritons."""
    if not rows:
        return ""
    if any(row.error is not None for row in rows):
        return "error"
    worst = {name: max(getattr(row, name) for row in rows) for name in ("hot_spill", "loop_spill", "spill", "shared")}
    spill = f"{worst['spill']} B"
    if worst["loop_spill"]:
        spill += f" of which {worst['loop_spill']} in loops"
    if worst["hot_spill"]:
        spill += f", {worst['hot_spill']} in the hot loop"
    traffic = " / ".join(_traffic([row.traffic.get(name, 0.0) for row in rows]) for name in ("forward", "backward"))
    return f"{traffic}, {max(row.registers for row in rows)}, {spill}, {worst['shared'] / 1024:.0f}"


def _traffic(values: list[float | None]) -> str:
    """The largest; 0 stands for a pass that there is not."""
    return "?" if None in values else f"{max(values):.2f}" if any(values) else "-"


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> Iterator[str]:
    for line in (head, ("---",) * len(head), *lines):
        yield f"| {' | '.join(line)} |"
