"""Kernels in a trace of PyTorch's profiler: how long each ran, and inside which of our marks it was launched.

The profiler takes a kernel's times from the GPU's own counters, so neither launching nor recording is in them. What
launched a kernel is told by the time of its launch: a backward pass is launched by another thread than the one that
waits for it, but at no other time.
"""

import gzip
import json
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

MARK = "subquad: "  # begins the name of every mark
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")  # on AMD too


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a pass.

    mark: the innermost mark in which it was launched, "" if that is the pass itself.
    microseconds: median over the repetitions.
    """

    name: str
    mark: str
    microseconds: float


@dataclass(frozen=True)
class PassTimes:
    """Kernels of a pass in the order in which they ran.

    repeats: repetitions that count: those with the most frequent sequence of kernels.
    left_out: the others, in which the profiler lost a kernel or the pass took another way.
    """

    kernels: tuple[KernelTime, ...] = ()
    repeats: int = 0
    left_out: int = 0


def read_trace(path: Path, passes: tuple[str, ...]) -> dict[str, PassTimes]:
    """The kernels of every pass whose repetitions are marked MARK + its name."""
    open_ = gzip.open if path.suffix == ".gz" else open
    with open_(path, "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})
    }
    kernels = sorted((event for event in events if event.get("cat") in ON_GPU), key=lambda event: event["ts"])
    kernels = [(event, launched.get(event["args"].get("correlation"))) for event in kernels]
    marks = [event for event in events if event.get("cat") == "user_annotation" and event["name"].startswith(MARK)]
    return {name: _pass_times(name, marks, kernels) for name in passes}


def _pass_times(name: str, marks: list[dict], kernels: list[tuple[dict, float | None]]) -> PassTimes:
    repetitions = []
    for whole in (mark for mark in marks if mark["name"] == MARK + name):
        inner = [mark for mark in marks if mark is not whole and _is_in(mark["ts"], whole)]
        found = [(event, when) for event, when in kernels if when is not None and _is_in(when, whole)]
        repetitions.append([(event["name"], _innermost(when, inner), event["dur"]) for event, when in found])
    sequences = defaultdict(list)
    for kernels_of_one in repetitions:
        sequences[tuple(kernel[:2] for kernel in kernels_of_one)].append([kernel[2] for kernel in kernels_of_one])
    if not any(sequences):
        return PassTimes(left_out=len(repetitions))
    counts = Counter({names: len(times) for names, times in sequences.items() if names})
    [(sequence, count)] = counts.most_common(1)
    medians = [statistics.median(times) for times in zip(*sequences[sequence], strict=True)]
    kernels_of_pass = tuple(KernelTime(*names, time) for names, time in zip(sequence, medians, strict=True))
    return PassTimes(kernels_of_pass, count, len(repetitions) - count)


def _innermost(when: float, marks: list[dict]) -> str:
    around = [mark for mark in marks if _is_in(when, mark)]
    return max(around, key=lambda mark: mark["ts"])["name"].removeprefix(MARK) if around else ""


def _is_in(when: float, mark: dict) -> bool:
    return mark["ts"] <= when < mark["ts"] + mark["dur"]
