"""`subquad throughput --ops`: every op beside the form it replaces, with and without the levers of the CPU."""

import json
import math
import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from subquad.kernels.levers import Levers, cpu_levers, matmul_lever

from .op_rows import COMPARISONS, MEMORY_GOAL, SLOPE_GOALS, SUBQUADRATIC, Comparison, Sizes
from .timing import Clock, Timing, clock_for, peak_bytes, speed_ups, summarize_rounds, time_interleaved, time_rounds

MEASURES = ("speed", "length", "memory")
OPS = tuple(dict.fromkeys(op for comparison in COMPARISONS for op in comparison.goals))
ROUNDS = 15  # of a comparison
COMPARISON_SECONDS = 60.0  # to spend at most on one round-robin
MIB = 1 << 20


@dataclass(frozen=True)
class Result:
    """One number that has a goal.

    Args:
        measure: "speed" (the peer's time over ours, the median of the rounds' ratios, at least the goal), "length"
            (log-log slope of time against length, at most the goal) or "memory" (the same of peak memory).
        op: what was measured.
        peer: the published form of "speed"; empty otherwise.
        levers: whether the levers of the CPU were on.
        value: the number.
        goal: its bound.
        points: what stands behind it: median milliseconds by candidate or length, bytes by length.
        timings: what stands behind the milliseconds.
        ratios: of "speed", those of its rounds, in their order.
    """

    measure: str
    op: str
    peer: str
    levers: bool
    value: float
    goal: float
    points: dict[str, float]
    timings: dict[str, Timing]
    ratios: list[float] = field(default_factory=list)

    @property
    def met(self) -> bool:
        return self.value >= self.goal if self.measure == "speed" else self.value <= self.goal


def run_op_throughput(
    *, device: torch.device, out: Path, environment: dict, only: tuple[str, ...] = (), sizes: Sizes | None = None
) -> list[Result]:
    """Measure, append one JSON line a result to `out`, and print tables.

    Args:
        device: where to measure.
        out: file of JSON lines; its folder is made.
        environment: machine, versions and commit, for the records.
        only: measures ("speed", "length", "memory") and ops to which to keep; everything if empty.
        sizes: the lengths; those of the published goals if None.

    Raises:
        ValueError: a name in `only` that is neither a measure nor an op.
    """
    measures, ops = _select(only)
    sizes = sizes or Sizes()
    out.parent.mkdir(parents=True, exist_ok=True)
    console = Console()
    results = []
    with out.open("a") as file:
        for levers, result in _measure_all(measures, ops, sizes, device, console):
            record = {"kind": "op_throughput", **asdict(result), "met": result.met, "sizes": asdict(sizes)}
            file.write(json.dumps(record | {"switched": asdict(levers), "environment": environment}) + "\n")
            file.flush()
            results.append(result)
    for measure in measures:
        console.print(make_table(measure, [result for result in results if result.measure == measure]))
    console.print(f"{sum(result.met for result in results)} of {len(results)} goals met; records in {out}")
    return results


def compare(comparison: Comparison, ops: list[str], sizes: Sizes, device: torch.device, levers: bool) -> list[Result]:
    """Time some ops of a comparison in one round-robin with the form they replace."""
    runs = {name: comparison.make[name](sizes, device) for name in (comparison.peer, *ops)}
    with matmul_lever(False) if comparison.few_rows else nullcontext():
        rounds = time_rounds(runs, clock=clock_for(device), samples=ROUNDS, budget=COMPARISON_SECONDS)
    timings = summarize_rounds(rounds)
    peer = timings[comparison.peer]
    results = []
    for op in ops:
        ours = timings[op]
        points = {"ours": ours.median * 1e3, "peer": peer.median * 1e3}
        ratios, goal = speed_ups(rounds, op, comparison.peer), comparison.goals[op]
        both = {"ours": ours, "peer": peer}
        results.append(
            Result("speed", op, comparison.peer, levers, statistics.median(ratios), goal, points, both, ratios)
        )
    return results


def measure_length(op: str, sizes: Sizes, device: torch.device, levers: bool, clock: Clock) -> Result:
    """How the op's time grows between the two lengths of `sizes.slope`."""
    timings = time_interleaved({str(t): SUBQUADRATIC[op](t, device) for t in sizes.slope}, clock=clock)
    milliseconds = {t: timing.median * 1e3 for t, timing in timings.items()}
    return Result("length", op, "", levers, slope(milliseconds), SLOPE_GOALS[op], milliseconds, timings)


def measure_memory(op: str, sizes: Sizes, device: torch.device) -> Result:
    """How the op's peak memory grows between the first and the last length of `sizes.memory`, inputs excluded."""
    peaks = {str(t): peak_bytes(SUBQUADRATIC[op](t, device), device) for t in sizes.memory}
    return Result("memory", op, "", False, slope(peaks), MEMORY_GOAL, peaks, {})


def slope(points: dict[str, float]) -> float:
    """Exponent of growth between the first and the last length."""
    (first, low), *_, (last, high) = points.items()
    return math.log(high / low) / math.log(int(last) / int(first))


def make_table(measure: str, results: list[Result]) -> Table:
    """All results of one measure, with and without levers side by side."""
    title = {
        "speed": "time against the form it replaces, ms",
        "length": "time against length, ms",
        "memory": "peak memory against length, MiB",
    }[measure]
    is_speed, scale = measure == "speed", MIB if measure == "memory" else 1
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("op", "levers", *(["against"] if is_speed else [])):
        table.add_column(heading, no_wrap=True)
    points = list(results[0].points) if results else []
    for heading in (*points, *(("ratio", "goal >=") if is_speed else ("slope", "goal <="))):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met")
    for result in sorted(results, key=lambda result: OPS.index(result.op)):
        table.add_row(
            result.op,
            "on" if result.levers else "off",
            *([result.peer] if is_speed else []),
            *(f"{value / scale:.4g}" for value in result.points.values()),
            f"{result.value:.2f}",
            f"{result.goal:.3g}",
            "yes" if result.met else "no",
        )
    return table


def _measure_all(
    measures: list[str], ops: list[str], sizes: Sizes, device: torch.device, console: Console
) -> Iterator[tuple[Levers, Result]]:
    """All results, first without the levers, then with those that this machine allows."""
    off = partial(cpu_levers, matmul=False, allocator=False)
    for make_levers in (off, cpu_levers) if device.type == "cpu" else (off,):
        with make_levers() as levers:
            on = levers.matmul.on or levers.allocator.on
            if make_levers is cpu_levers:
                console.print(f"levers: matmul {levers.matmul}, allocator {levers.allocator}")
                if not on:
                    return
            with console.status("") as status:
                for result in _measure(measures, ops, sizes, device, on, status):
                    yield levers, result


def _measure(measures: list[str], ops: list[str], sizes: Sizes, device: torch.device, levers: bool, status) -> Iterator:
    clock = clock_for(device)
    for comparison in COMPARISONS if "speed" in measures else ():
        wanted = [op for op in comparison.goals if op in ops]
        if wanted and not comparison.is_installed:
            status.console.print(f"{', '.join(wanted)} beside {comparison.peer}: needs {comparison.package}; skipped")
        elif wanted:
            status.update(f"levers {levers}: {', '.join(wanted)} against {comparison.peer}")
            yield from compare(comparison, wanted, sizes, device, levers)
    for op in SUBQUADRATIC:
        if op in ops and "length" in measures:
            status.update(f"levers {levers}: {op} against length")
            yield measure_length(op, sizes, device, levers, clock)
        if op in ops and "memory" in measures and not levers:
            status.update(f"memory of {op}")
            yield measure_memory(op, sizes, device)


def _select(only: tuple[str, ...]) -> tuple[list[str], list[str]]:
    if unknown := [name for name in only if name not in MEASURES + OPS]:
        raise ValueError(
            f"throughput: --only knows no {', '.join(unknown)}; measures are {', '.join(MEASURES)}, "
            f"ops are {', '.join(OPS)}"
        )
    measures = [name for name in MEASURES if name in only] or list(MEASURES)
    return measures, [name for name in OPS if name in only] or list(OPS)
