"""One table and one record of a modelled profile."""

import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .calls import Subject
from .model import ASSUMPTIONS, KernelModel, PassModel
from .pipes import Work
from .targets import GPU

WIDTH = 170  # of a table that goes to a file
KIND = "profile_model"
COLUMNS = (
    "kernel", "n", "grid", "warps", "regs", "spill", "KiB", "occupancy", "hot loop", "matrix <=", "async",
    "asked MB", "MB", "us >=", "bound by",
)  # fmt: skip
LEFT = ("kernel", "occupancy", "hot loop", "matrix <=", "async", "bound by")
LEGEND = (
    "n: launches alike, whose bytes and time are summed; spill: bytes a thread stores and loads for want of registers; "
    "KiB: shared memory of a block; occupancy: resident warps of those a multiprocessor holds, and what prevents more",
    "hot loop: matrix instructions of all instructions that a warp issues in one pass; matrix <=: share of its time "
    "that the matrix units can be busy, and the pipe that prevents more; async: instructions that copy asynchronously",
    "asked MB: bytes that loads and stores name; MB: bytes that must cross device memory; us >=: lower bound",
)
SHORT = {"registers": "regs", "shared memory": "shared", "tensor memory": "tensor"}


def print_profile(subject: Subject, gpu: GPU, passes: Sequence[PassModel]) -> None:
    """A row for each kernel, one for PyTorch's own operations, and a sum for each pass; then what is assumed."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=column == "kernel")
    for one in passes:
        table.add_row(one.name, style="bold")
        for row in _rows(one):
            table.add_row(*row)
    console.print(f"{subject.label}\non {gpu.name}: a model, not a measurement", markup=False, highlight=False)
    console.print(table)
    for one in passes:
        console.print(summary(one, gpu), markup=False, highlight=False)
    for line in (*LEGEND, *ASSUMPTIONS, f"Numbers of the GPU: {gpu.source}."):
        console.print(f"- {line}", markup=False, highlight=False)


def summary(one: PassModel, gpu: GPU) -> str:
    """A pass in one line: bytes beside those that cannot be spared, and the bound."""
    moved = one.device_bytes + one.helper_bytes
    unknown = sum(kernel.launches for kernel in one.kernels if kernel.traffic is None)
    if unknown:
        return (
            f"{one.name}: {one.launches} launches, of which {unknown} move what depends on values in memory, so their "
            f"bytes and time are not known; {one.helper_count} helper operations; compulsory "
            f"{_megabytes(one.compulsory_bytes)} MB"
        )
    fits = one.compulsory_bytes < gpu.cache_mb * 1e6
    return (
        f"{one.name}: {one.launches} launches, {one.helper_count} helper operations; {_megabytes(moved)} MB, "
        f"{moved / one.compulsory_bytes:.2f} times the compulsory {_megabytes(one.compulsory_bytes)} MB; "
        f"at least {one.microseconds:.1f} us"
        + (f", or less where the cache of {gpu.cache_mb:.0f} MB holds what one launch leaves the next" if fits else "")
    )


def record_of(subject: Subject, target: str, gpu: GPU, passes: Sequence[PassModel]) -> dict:
    """What records.jsonl keeps: bytes in bytes, times in microseconds, all of them modelled."""
    return {
        "kind": KIND,
        "measured": False,
        "subject": "mixer" if subject.is_mixer else "op",
        "name": subject.name,
        "sizes": subject.sizes,
        "dtype": subject.dtype,
        "target": target,
        "gpu": gpu.name,
        "assumptions": list(ASSUMPTIONS),
        "passes": [_pass_record(one) for one in passes],
    }


def _rows(one: PassModel) -> list[list[str]]:
    rows = [_cells(kernel) for kernel in one.kernels]
    if one.helper_count:
        cells = dict.fromkeys(COLUMNS, "")
        cells |= {"kernel": "  PyTorch's own", "n": str(one.helper_count), "MB": _megabytes(one.helper_bytes)}
        cells["us >="] = f"{one.helper_microseconds:.1f}"
        rows.append(list(cells.values()))
    return rows


def _cells(kernel: KernelModel) -> list[str]:
    facts, traffic = kernel.facts, kernel.traffic
    return [
        "  " + kernel.name.removesuffix("_kernel"),
        str(kernel.launches),
        "x".join(map(str, kernel.grid)).removesuffix("x1").removesuffix("x1"),
        str(facts.num_warps),
        str(facts.registers),
        str(facts.spill),
        f"{facts.shared / 1024:.1f}",
        f"{kernel.occupancy.share:.0%} {SHORT.get(kernel.occupancy.limit, kernel.occupancy.limit)}",
        _products(facts.hot, facts.has_loop),
        _matrix_share(facts.hot),
        ", ".join(f"{count} {kind}" for kind, count in facts.async_copies.items()) or "-",
        "?" if traffic is None else _megabytes(kernel.launches * traffic.requested_bytes),
        "?" if traffic is None else _megabytes(kernel.launches * kernel.device_bytes),
        f"{kernel.launches * kernel.microseconds:.1f}",
        kernel.limit,
    ]


def _products(hot: Work | None, has_loop: bool) -> str:
    if hot is None:
        return "-"
    kinds = ", ".join(f"{count} {kind}" for kind, count in hot.products.items())
    return f"{kinds} of {hot.instructions}" + ("" if has_loop else " (no loop)")


def _matrix_share(hot: Work | None) -> str:
    """The bound and what sets it."""
    if hot is None:
        return ""
    share = hot.matrix_share
    return "not known" if share is None else f"{share:.0%} {hot.busiest}"


def _pass_record(one: PassModel) -> dict:
    return {
        "pass": one.name,
        "launches": one.launches,
        "device_bytes": one.device_bytes,
        "compulsory_bytes": one.compulsory_bytes,
        "helper_count": one.helper_count,
        "helper_bytes": one.helpers,
        "helper_flops": one.helper_flops,
        "lower_bound_us": one.microseconds,
        "kernels": [_kernel_record(kernel) for kernel in one.kernels],
    }


def _kernel_record(kernel: KernelModel) -> dict:
    facts, traffic, hot = kernel.facts, kernel.traffic, kernel.facts.hot
    return {
        "kernel": kernel.name,
        "launches": kernel.launches,
        "grid": list(kernel.grid),
        "num_warps": facts.num_warps,
        "registers": facts.registers,
        "spill_bytes": facts.spill,
        "shared_bytes": facts.shared,
        "resident_warps": kernel.occupancy.warps,
        "occupancy": kernel.occupancy.share,
        "occupancy_limit": kernel.occupancy.limit,
        "instructions": facts.instructions,
        "async_copies": facts.async_copies,
        "hot_loop": hot and {
            "is_loop": facts.has_loop,
            "instructions": hot.instructions,
            "products": hot.products,
            "flops": hot.flops,
            "clocks": hot.clocks,
            "matrix_share": hot.matrix_share,
        },
        "reads": traffic and dict(traffic.reads),
        "writes": traffic and dict(traffic.writes),
        "requested_bytes": traffic and traffic.requested_bytes,
        "device_bytes": kernel.device_bytes,
        "flops": traffic and dict(traffic.flops),
        "bounds_us": kernel.bounds,
        "lower_bound_us": kernel.microseconds,
        "unknown": kernel.unknown,
    }  # fmt: skip


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"
