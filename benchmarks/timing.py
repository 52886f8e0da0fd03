"""How long candidates take beside one another, and how much memory one needs at its peak.

Candidates run round-robin in one process: what disturbs the machine disturbs all of them, and only ratios inside one
round-robin are compared.
"""

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

MAX_WAITING = 0.04  # share of a sample that threads may spend waiting for a core before it counts as disturbed
MIN_SECONDS = 0.004  # a shorter candidate is repeated inside one sample, for the clock's own cost not to matter
MAX_REPEATS = 1000
WARM_AGAIN_SECONDS, MAX_WARM_UPS = 1.0, 8
STEADY = 0.8  # a call that takes at least this share of the one before it is warm
FLUSH_BYTES = 512 << 20  # twice the largest cache of a GPU, so every repetition starts from device memory
TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Sample:
    seconds: float  # of one call
    disturbed: bool = False


@dataclass(frozen=True)
class Timing:
    """Seconds of one call over the undisturbed samples; over all of them where none is undisturbed (count = 0)."""

    median: float
    minimum: float
    count: int
    rejected: int


class Clock(Protocol):
    def measure(self, run: Callable[[], object], repeats: int) -> Sample:
        """Call `run` so many times; the seconds of one call."""


class HostClock:
    """Wall time of the CPU, with samples marked in which threads of this process had to wait for a core.

    With one thread it is processor time, which waiting does not enter, so no sample is ever disturbed.
    """

    def __init__(self, num_threads: int | None = None):
        self.num_threads = torch.get_num_threads() if num_threads is None else num_threads

    def measure(self, run: Callable[[], object], repeats: int) -> Sample:
        read = time.process_time if self.num_threads == 1 else time.perf_counter
        waited, start = waiting_seconds(), read()
        for _ in range(repeats):
            run()
        seconds, waited = read() - start, waiting_seconds() - waited
        return Sample(seconds / repeats, self.num_threads > 1 and waited > MAX_WAITING * seconds)


class CudaClock:
    """Time between two events on the GPU's own queue, its L2 cache emptied before every call.

    Args:
        device: the GPU.
        cuda: the module with `Event` and `synchronize`; `torch.cuda` unless a test stands in for it.
    """

    def __init__(self, device: torch.device, cuda=torch.cuda):
        self.cuda = cuda
        self.device = device
        self.flushed = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device)

    def measure(self, run: Callable[[], object], repeats: int) -> Sample:
        pairs = []
        for _ in range(repeats):
            start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
            self.flushed.zero_()
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        self.cuda.synchronize(self.device)
        return Sample(statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3)


def clock_for(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else HostClock()


def time_interleaved(
    candidates: dict[str, Callable[[], object]], *, clock: Clock, samples: int = 7, budget: float = 20.0
) -> dict[str, Timing]:
    """Time the candidates in rounds, as `time_rounds`."""
    return summarize_rounds(time_rounds(candidates, clock=clock, samples=samples, budget=budget))


def time_rounds(
    candidates: dict[str, Callable[[], object]], *, clock: Clock, samples: int, budget: float
) -> list[dict[str, Sample]]:
    """One sample of each candidate a round, until each has `samples` undisturbed ones or `budget` seconds have passed.

    Every candidate is called once or twice before, to warm up, and gives at least one sample whatever the budget.
    """
    repeats = {name: _warm_up(run, clock) for name, run in candidates.items()}
    rounds: list[dict[str, Sample]] = []
    deadline = time.perf_counter() + budget
    while any(sum(not taken[name].disturbed for taken in rounds) < samples for name in candidates):
        rounds.append({name: clock.measure(run, repeats[name]) for name, run in candidates.items()})
        if time.perf_counter() > deadline:
            break
    return rounds


def speed_ups(rounds: list[dict[str, Sample]], name: str, peer: str) -> list[float]:
    """The peer's time over that of `name` in each round that disturbed neither; in all rounds if there is none.

    Both samples of a round met the machine in one state. Their medians need not have: where it is fast for some
    rounds and slow for others, they can come from different states. So compare by the median of these.
    """
    kept = [taken for taken in rounds if not (taken[name].disturbed or taken[peer].disturbed)]
    return [taken[peer].seconds / taken[name].seconds for taken in kept or rounds]


def summarize_rounds(rounds: list[dict[str, Sample]]) -> dict[str, Timing]:
    return {name: summarize([taken[name] for taken in rounds]) for name in rounds[0]}


def summarize(samples: list[Sample]) -> Timing:
    """Median, minimum and count of the undisturbed samples; of all, with a count of 0, where there is none."""
    kept = [sample.seconds for sample in samples if not sample.disturbed]
    used = kept or [sample.seconds for sample in samples]
    return Timing(statistics.median(used), min(used), len(kept), len(samples) - len(kept))


def waiting_seconds() -> float:
    """Time that this process's threads have been ready to run but had no core; 0 where Linux does not say."""
    waited = 0
    for task in TASKS.iterdir() if TASKS.exists() else ():
        try:
            waited += int((task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # no such accounting here, or the thread has just ended
            continue
    return waited / 1e9


def peak_bytes(run: Callable[[], object], device: torch.device, cuda=torch.cuda) -> int:
    """Most bytes of tensors alive at one time while `run` works, above those that were alive before it.

    `cuda` is `torch.cuda` unless a test stands in for it.

    On a CPU these are the requests to PyTorch's allocator as its profiler logs them, temporaries inside operators
    included. That is exact and repeats to the byte, which the resident size does not (the allocator keeps freed
    memory). Not seen: scratch memory that MKL or oneDNN take past PyTorch, a few MB and constant in the length.
    """
    if device.type == "cuda":
        cuda.synchronize(device)
        cuda.reset_peak_memory_stats(device)
        before = cuda.memory_allocated(device)
        run()
        cuda.synchronize(device)
        return cuda.max_memory_allocated(device) - before
    with _quiet_profiler(), torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:  # fmt: skip
        run()
    alive = peak = 0
    for change in _allocations(profile):
        alive += change
        peak = max(peak, alive)
    return peak


def _allocations(profile: torch.profiler.profile) -> Iterator[int]:
    """Bytes taken (> 0) and given back (< 0), in order. The trace is the only public form that keeps the order."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = (event for event in events if event.get("name") == "[memory]")
    for event in sorted(memory, key=lambda event: event["ts"]):
        yield event["args"]["Bytes"]


@contextmanager
def _quiet_profiler() -> Iterator[None]:
    """The profiler's C++ library writes two lines to stderr at every start unless its own variable says otherwise."""
    os.putenv("KINETO_LOG_LEVEL", "99")
    try:
        yield
    finally:
        os.unsetenv("KINETO_LOG_LEVEL")


def _warm_up(run: Callable[[], object], clock: Clock) -> int:
    """How often to repeat `run` in one sample. First calls may compile, plan or touch fresh memory, so a fast
    candidate is called until that no longer makes it faster."""
    before, seconds = math.inf, clock.measure(run, 1).seconds
    for _ in range(MAX_WARM_UPS):
        if seconds > WARM_AGAIN_SECONDS or seconds > STEADY * before:
            break
        before, seconds = seconds, clock.measure(run, 1).seconds
    return min(MAX_REPEATS, max(1, math.ceil(MIN_SECONDS / max(seconds, 1e-9))))
