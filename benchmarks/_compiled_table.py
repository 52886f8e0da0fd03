"""The compiled kernels as a file of JSON lines and as a readable table made from it."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from subquad.kernels import OPS

from ._compiled_cases import WIDTH_MEANS
from .compiled import SHARED_LIMIT, CompiledKernel

RESULTS = Path(__file__).parent / "results"
SOURCE, TABLE = "compiled_kernels.jsonl", "compiled_kernels.md"
COMMAND = "subquad check --compile"
WORST = 20  # lines of the table of spills

INTRODUCTION = f"""# Every Triton kernel, compiled ahead of time

Made by `{COMMAND}`, without a GPU; `{SOURCE}` beside this file holds the same numbers. Each launch is compiled as the
op itself makes it: same constants, warps, stages and alignment. Nothing was run, so nothing here is a time.

A cell reads registers / spill / shared. Registers are those of a thread. Spill: bytes a thread writes to memory and
reads back because its registers do not suffice (NVIDIA: what `ptxas -v` reports; AMD: spilled vector registers).
Shared: KiB of a block; {", ".join(f"{limit >> 10} KiB on {backend}" for backend, limit in SHARED_LIMIT.items())}
is the most a kernel may take.
"""


def store(found: Iterable[CompiledKernel], folder: Path = RESULTS) -> list[CompiledKernel]:
    """Replace what the folder holds of the ops that are found, and write both files anew; return all of it."""
    found = list(found)
    anew = {kernel.op for kernel in found}
    everything = found + [kernel for kernel in load(folder) if kernel.op not in anew]
    everything.sort(key=lambda x: OPS.index(x.op))
    folder.mkdir(exist_ok=True)
    (folder / SOURCE).write_text("".join(json.dumps(asdict(kernel)) + "\n" for kernel in everything))
    (folder / TABLE).write_text("\n".join(_document(everything)))
    return everything


def load(folder: Path = RESULTS) -> list[CompiledKernel]:
    """What the folder holds; nothing if there is no file."""
    path = folder / SOURCE
    return [CompiledKernel(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def summary(kernels: Iterable[CompiledKernel]) -> list[tuple[str, ...]]:
    """One line for each op and target, under SUMMARY_HEAD."""
    groups = defaultdict(list)
    for kernel in kernels:
        groups[kernel.op, kernel.target].append(kernel)
    return [
        (
            op,
            target,
            str(len(group)),
            str(sum(kernel.error is not None for kernel in group)),
            str(sum(kernel.over_limit for kernel in group)),
            str(sum(kernel.spill > 0 for kernel in group)),
            str(max(kernel.spill for kernel in group)),
            f"{max(kernel.shared for kernel in group) / 1024:.1f}",
        )
        for (op, target), group in groups.items()
    ]


SUMMARY_HEAD = ("op", "target", "kernels", "errors", "over limit", "that spill", "worst spill", "most shared, KiB")


def _document(kernels: list[CompiledKernel]) -> Iterator[str]:
    yield INTRODUCTION
    yield f"Triton {', '.join(sorted({kernel.triton for kernel in kernels}))}.\n"
    yield "## Summary\n"
    yield from _table(SUMMARY_HEAD, summary(kernels))
    failed = [kernel for kernel in kernels if kernel.failed]
    if failed:
        yield "\n## What does not compile or does not fit\n"
        yield from _table(
            ("op", "kernel", "case", "width", "dtype", "target", "shared, KiB", "error"),
            [(*_name(x), x.target, f"{x.shared / 1024:.1f}", x.error or "") for x in failed],
        )
    spilling = sorted((kernel for kernel in kernels if kernel.spill), key=lambda x: -x.spill)
    if spilling:
        yield f"\n## Worst spills, {min(WORST, len(spilling))} of {len(spilling)}\n"
        yield from _table(
            ("op", "kernel", "case", "width", "dtype", "target", "warps", "registers / spill / shared"),
            [(*_name(x), x.target, str(x.num_warps), _cell(x)) for x in spilling[:WORST]],
        )
    for op in dict.fromkeys(kernel.op for kernel in kernels):
        yield f"\n## {op}\n\nWidth is the {WIDTH_MEANS[op]}.\n"
        yield from _op_table([kernel for kernel in kernels if kernel.op == op])
    yield ""


def _op_table(kernels: list[CompiledKernel]) -> Iterator[str]:
    targets = sorted({kernel.target for kernel in kernels})
    lines = defaultdict(dict)
    for kernel in kernels:
        lines[_name(kernel)[1:]][kernel.target] = _cell(kernel)
    head = ("kernel", "case", "width", "dtype", *targets)
    yield from _table(head, [(*name, *(cells.get(target, "") for target in targets)) for name, cells in lines.items()])


def _name(kernel: CompiledKernel) -> tuple[str, ...]:
    number = f" #{kernel.launch}" if kernel.launch > 1 else ""
    return kernel.op, kernel.kernel + number, kernel.case, str(kernel.width), kernel.dtype


def _cell(kernel: CompiledKernel) -> str:
    if kernel.error is not None:
        return "error"
    return f"{kernel.registers} / {kernel.spill} / {kernel.shared / 1024:.1f}"


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> Iterator[str]:
    for line in (head, ("---",) * len(head), *lines):
        yield f"| {' | '.join(line)} |"
