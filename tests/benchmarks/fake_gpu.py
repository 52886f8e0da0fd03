"""A GPU that a test makes up: its clock and its kernels' times are scripted, all else runs as it would on one."""

import gzip
import json
from types import SimpleNamespace

import torch

from subquad.benchmarks.profile.device import Device
from subquad.benchmarks.profile.trace import MARK

PASS_MS = 5.0  # between any two events
KERNEL_US = 100.0  # of the first repetition; each further takes one more
GIGABYTE = 10**9


def h100(**changes) -> SimpleNamespace:
    """What PyTorch says of a device."""
    properties = dict(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, gcnArchName="sm_90", multi_processor_count=132,
        total_memory=80 * GIGABYTE, clock_rate=1_980_000, memory_clock_rate=2_619_000, memory_bus_width=5120,
    )  # fmt: skip
    return SimpleNamespace(**(properties | changes))


class FakeCuda:
    """Stands in for torch.cuda."""

    def __init__(self, properties=None):
        self._properties = properties or h100()
        self.emptied = 0

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            pass

        def elapsed_time(self, end: "FakeCuda.Event") -> float:
            return PASS_MS

    def get_device_properties(self, device: torch.device):
        return self._properties

    def synchronize(self, device: torch.device) -> None:
        pass

    def empty_cache(self) -> None:
        self.emptied += 1


class FakeDevice(Device):
    """Its traces are those of the CPU, with a kernel for each of our marks, or for a pass that has none in it."""

    def __init__(self, properties=None):
        self.cuda = FakeCuda(properties)
        super().__init__(torch.device("cpu"), self.cuda)

    def trace(self, passes, path) -> None:
        super().trace(passes, path)
        with gzip.open(path, "rt") as file:
            content = json.load(file)
        events = content["traceEvents"]
        marks = [x for x in events if x.get("cat") == "user_annotation" and x["name"].startswith(MARK)]
        repetitions = {}
        for whole in (mark for mark in marks if mark["name"].removeprefix(MARK) in passes):
            end = whole["ts"] + whole["dur"]
            inner = [mark for mark in marks if whole["ts"] < mark["ts"] < end] or [whole]
            nth = repetitions[whole["name"]] = repetitions.get(whole["name"], -1) + 1
            for mark in inner:
                events += kernel(f"kernel of {mark['name'].removeprefix(MARK)}", mark["ts"], KERNEL_US + nth, events)
        with gzip.open(path, "wt") as file:
            json.dump(content, file)


def kernel(name: str, launched: float, microseconds: float, events: list[dict]) -> list[dict]:
    """The two events of a launch, as Kineto writes them."""
    correlation = len(events)
    return [
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": launched, "dur": 2.0, "pid": 1, "tid": 2,
         "args": {"correlation": correlation}},
        {"ph": "X", "cat": "kernel", "name": name, "ts": launched + 1000, "dur": microseconds, "pid": 0, "tid": 7,
         "args": {"correlation": correlation, "device": 0, "stream": 7, "grid": [1, 1, 1], "block": [128, 1, 1]}},
    ]  # fmt: skip
