"""One table and one record of a measured profile."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .calls import Subject
from .measure import Measured, MeasuredKernel, MeasuredPass
from .roof import KINDS, Rates, Roof, rates
from .work import METHOD

WIDTH = 150  # of a table that goes to a file
KIND = "profile"
COLUMNS = ("kernel", "n", "us", "share", "MB", "GB/s", "of memory", "TFLOP/s", "of peak", "bound by", "peak MB")
LEFT = ("kernel", "bound by")
ROUNDING = 0.05  # a larger difference between a baseline and ours, as a share of the largest value, is pointed out

LEGEND = (
    "forward, backward: time of the whole pass as it is called, by CUDA events around it, median of many, the L2 cache "
    "emptied before each; in it the GPU may wait for the host. MB: inputs and outputs once. TFLOP/s: see below. "
    "peak MB: memory taken above what was there before, backward with the forward pass before it",
    "kernels: time on the GPU's own counters as PyTorch's profiler reads them, median of the repetitions, the cache "
    "emptied before each pass and not between its kernels; share: of all kernels of the pass. MB: bytes that must "
    "cross device memory, each tensor at most once in each direction, counted in the kernel's code and its arguments "
    "(of PyTorch's own operations each tensor once); TFLOP/s: matrix products in its code, masked parts included",
    "of memory, of peak: shares of what the GPU can do at most; bound by: the nearer of the two roofs",
    "Of a baseline's kernels only the times are known. Candidates were measured one after the other.",
)


def print_measured(subject: Subject, roof: Roof, found: Sequence[Measured]) -> None:
    """A block for each candidate: its passes, and below each its kernels; then what could not be measured and why."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=column == "kernel")
    for one in found:
        if one.passes:
            table.add_row(one.name, style="bold")
        for measured in one.passes:
            table.add_row(*pass_cells(measured, roof))
            for kernel in measured.kernels:
                table.add_row(*kernel_cells(kernel, measured, roof))
    lines = [f"{subject.label}\non {roof.name}: measured", table, *_notes(subject, found)]
    lines += [f"- {line}" for line in (*LEGEND, *METHOD, describe(roof))]
    for line in lines:
        console.print(line, **({"markup": False, "highlight": False} if isinstance(line, str) else {}))


def pass_cells(one: MeasuredPass, roof: Roof) -> list[str]:
    found = rates(one.microseconds, one.num_bytes, one.flops, roof)
    return [
        f"  {one.name}",
        "",
        _time(one.microseconds),
        "",
        _megabytes(one.num_bytes),
        *_rate_cells(found, one.flops),
        _megabytes(one.peak_bytes),
    ]


def kernel_cells(kernel: MeasuredKernel, one: MeasuredPass, roof: Roof) -> list[str]:
    found = rates(kernel.microseconds, kernel.num_bytes, kernel.flops, roof)
    share = kernel.microseconds / one.kernel_microseconds if one.kernel_microseconds else 0.0
    return [
        "    " + kernel.name.removesuffix("_kernel"),
        str(kernel.launches),
        _time(kernel.microseconds),
        f"{share:.0%}",
        _megabytes(kernel.num_bytes),
        *_rate_cells(found, kernel.flops),
        "",
    ]


def describe(roof: Roof) -> str:
    """The roof in one line."""
    peaks = ", ".join(
        f"{roof.tflops[kind]:.0f} TFLOP/s on {what}" for kind, what in KINDS.items() if kind in roof.tflops
    )
    memory = "an unknown bandwidth" if roof.bandwidth_gb is None else f"{roof.bandwidth_gb:.0f} GB/s"
    return f"{roof.name}: {memory}, {peaks or 'unknown arithmetic rates'}. {roof.source}."


def measured_record(subject: Subject, roof: Roof, found: Sequence[Measured], files: Sequence[str]) -> dict:
    """What records.jsonl keeps: bytes in bytes, times in microseconds. `files` are those that stand beside it."""
    return {
        "kind": KIND,
        "measured": True,
        "subject": "mixer" if subject.is_mixer else "op",
        "name": subject.name,
        "sizes": subject.sizes,
        "dtype": subject.dtype,
        "roof": asdict(roof),
        "method": [*LEGEND, *METHOD],
        "candidates": [_candidate_record(one, roof) for one in found],
        "files": list(files),
    }


def _notes(subject: Subject, found: Sequence[Measured]) -> list[str]:
    notes = [f"{one.name}: {one.absent}" for one in found if one.absent]
    if subject.is_mixer:
        notes.append("A mixer has no baselines; profile its op to see those.")
    for one in found:
        if one.error is not None and not one.error <= ROUNDING:
            notes.append(f"{one.name}: its output differs from ours by {one.error:.1%} of the largest value")
        for measured in one.passes:
            where = f"{one.name}, {measured.name}"
            if not measured.kernels:
                notes.append(f"{where}: the profiler recorded no kernel; the time of the pass stands alone")
            elif measured.left_out:
                total = measured.repeats + measured.left_out
                notes.append(f"{where}: {measured.repeats} of {total} repetitions ran the same kernels and count")
            notes += [f"{where}, {kernel.name}: {kernel.unknown}" for kernel in measured.kernels if kernel.unknown]
    return notes


def _rate_cells(found: Rates, flops: dict[str, int] | None) -> list[str]:
    has_flops = bool(flops) and any(flops.values())
    return [
        _known(found.gb_per_second, "{:.0f}"),
        _known(found.bandwidth_share, "{:.0%}"),
        _known(found.tflops if has_flops else None, "{:.1f}"),
        _known(found.peak_share if has_flops else None, "{:.0%}"),
        found.bound or "-",
    ]


def _candidate_record(one: Measured, roof: Roof) -> dict:
    return {
        "name": one.name,
        "absent": one.absent,
        "difference_from_ours": one.error,
        "trace": one.trace and one.trace.name,
        "passes": [
            {
                "pass": measured.name,
                "microseconds": measured.microseconds,
                "fastest_microseconds": measured.timing.minimum * 1e6,
                "samples": measured.timing.count,
                "kernel_microseconds": measured.kernel_microseconds,
                "repeats": measured.repeats,
                "left_out": measured.left_out,
                "compulsory_bytes": measured.num_bytes,
                "flops": measured.flops,
                "peak_bytes": measured.peak_bytes,
                **asdict(rates(measured.microseconds, measured.num_bytes, measured.flops, roof)),
                "kernels": [
                    {
                        "kernel": kernel.name,
                        "gpu_names": list(kernel.gpu_names),
                        "launches": kernel.launches,
                        "microseconds": kernel.microseconds,
                        "device_bytes": kernel.num_bytes,
                        "flops": kernel.flops,
                        "unknown": kernel.unknown,
                        **asdict(rates(kernel.microseconds, kernel.num_bytes, kernel.flops, roof)),
                    }
                    for kernel in measured.kernels
                ],
            }
            for measured in one.passes
        ],
    }


def _time(microseconds: float) -> str:
    return f"{microseconds:.1f}"


def _megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.1f}"


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
