"""A profile measured on a GPU: every kernel of an op or a mixer and of its baselines, and what each pass takes.

Two instruments, each for what it does best. A whole pass is timed by CUDA events, the median of many, as it is called,
with the gaps in which the GPU waits for the host. A kernel is timed by the GPU's own counters as PyTorch's profiler
reads them, the median of its repetitions, without those gaps. Both begin each pass with an emptied L2 cache.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from triton.errors import TritonError

from ..timing import Timing, time_interleaved
from .baselines import BASELINES, Baseline
from .calls import PAST, Subject, make_call
from .capture import HelperOp, Launch, tensor_bytes
from .device import Device
from .live import LiveSession, Marked, watch_launches
from .model import HALF, launch_traffic
from .trace import KernelTime, PassTimes, read_trace
from .work import pass_flops

OURS = "subquad"
# What others' code raises where it was built for another GPU or version, lacks memory or refuses sizes: it is reported.
FOREIGN_ERRORS = (
    ImportError, OSError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, TritonError,
)  # fmt: skip
SECONDS = 20.0  # to spend at most on timing the passes of one candidate


@dataclass(frozen=True)
class MeasuredKernel:
    """Kernels of a pass that are alike: launched by the same kernel of ours or operation of PyTorch's on equal sizes.

    name: of what launched them; `gpu_names` are those of the kernels.
    launches: how many times.
    microseconds, num_bytes, flops: of all launches together. Bytes and FLOP are None where they are not known, which
        `unknown` explains; FLOP are by what multiplies, as in `traffic.Traffic`.
    """

    name: str
    gpu_names: tuple[str, ...]
    launches: int
    microseconds: float
    num_bytes: int | None
    flops: dict[str, int] | None
    unknown: str = ""


@dataclass(frozen=True)
class MeasuredPass:
    """A forward or a backward pass.

    timing: seconds of the whole pass by CUDA events.
    kernels: empty if the profiler recorded none.
    repeats, left_out: repetitions behind the kernels' times, see `trace.PassTimes`.
    num_bytes: compulsory: what goes in and comes out, once.
    flops: of the op's equation, or for a mixer those counted in its kernels; None if not known.
    peak_bytes: of memory above what was taken before; backward together with the forward pass that precedes it.
    """

    name: str
    timing: Timing
    kernels: tuple[MeasuredKernel, ...]
    repeats: int
    left_out: int
    num_bytes: int
    flops: dict[str, int] | None
    peak_bytes: int

    @property
    def microseconds(self) -> float:
        return self.timing.median * 1e6

    @property
    def kernel_microseconds(self) -> float:
        return sum(kernel.microseconds for kernel in self.kernels)


@dataclass(frozen=True)
class Measured:
    """One candidate: our own or a baseline.

    passes: empty if it could not be measured.
    absent: why not: it is not installed, computes something else, or what it raised.
    error: of a baseline, the largest difference of its output from ours, as a share of our largest value.
    trace: file for Perfetto.
    """

    name: str
    passes: tuple[MeasuredPass, ...] = ()
    absent: str = ""
    error: float | None = None
    trace: Path | None = None


@dataclass(frozen=True)
class _Candidate:
    """What is measured under one name; without leaves it has no backward pass."""

    name: str
    forward: Callable[[], tuple[Tensor, ...]]
    leaves: list[Tensor]

    def train(self) -> None:
        """Both passes, with nothing kept."""
        y = self.forward()[0]
        torch.autograd.grad(y, self.leaves, torch.ones_like(y), allow_unused=True)


def measure_subject(subject: Subject, device: Device, folder: Path, seconds: float = SECONDS) -> list[Measured]:
    """Our own first, then every baseline of the op in the order of `baselines.BASELINES`, one after the other.

    Args:
        subject: what is called.
        device: where.
        folder: gets the traces.
        seconds: to spend at most on timing each candidate.

    Raises:
        ValueError: the inputs alone do not fit into the GPU's memory. BackendError: sizes that our kernels do not
            serve.
    """
    check_fits(subject, device)
    bench = _Bench(subject, device, folder, seconds)
    results = [bench.ours()]
    for baseline in () if subject.is_mixer else BASELINES[subject.name]:
        results.append(bench.baseline(baseline))
    return results


def check_fits(subject: Subject, device: Device) -> None:
    """Before anything is allocated: shapes alone say how much the inputs take."""
    sizes = {name: value for name, value in subject.sizes.items() if name != PAST}
    with FakeTensorMode():
        taken = sum(map(tensor_bytes, make_call(replace(subject, sizes=sizes), device.torch_device).tensors))
    if taken > device.total_bytes:
        raise ValueError(
            f"profile: {subject.label}: the inputs take {taken / 1e9:.1f} GB, but the GPU has "
            f"{device.total_bytes / 1e9:.1f} GB; give smaller sizes"
        )


def join(times: PassTimes, marked: Marked | None) -> tuple[MeasuredKernel, ...]:
    """Give every kernel of a trace the bytes and FLOP of what launched it; those that are alike become one row.

    `marked` is what the pass launched; without it only names and times are known.
    """
    launched: dict[tuple, list[KernelTime]] = {}
    for index, kernel in enumerate(times.kernels):
        launched.setdefault((kernel.mark, "" if kernel.mark else index), []).append(kernel)
    counts: dict[tuple, _Work] = {}
    rows: dict[tuple, MeasuredKernel] = {}
    for (mark, _), kernels in launched.items():
        names = tuple(kernel.name for kernel in kernels)
        work = _work_under(mark, names[0], marked, counts)
        microseconds = sum(kernel.microseconds for kernel in kernels)
        one = MeasuredKernel(work.name, names, 1, microseconds, work.num_bytes, work.flops, work.unknown)
        key = (work.name, names, work.num_bytes, *sorted((work.flops or {}).items()))
        rows[key] = _together(rows[key], one) if key in rows else one
    return tuple(rows.values())


@dataclass(frozen=True)
class _Work:
    """What one launch or one operation is and does."""

    name: str
    num_bytes: int | None = None
    flops: dict[str, int] | None = None
    unknown: str = ""


def _work_under(mark: str, name: str, marked: Marked | None, counts: dict[tuple, _Work]) -> _Work:
    """`name`: of the first kernel under the mark; `counts` keeps what launches that are alike do."""
    if marked is None:
        return _Work(short_name(name))
    match marked.get(mark):
        case HelperOp() as helper:
            return _work_of_helper(helper)
        case Launch() as launch:
            key = (launch.kernel.hash, launch.grid, *launch.scalars.items(), *launch.tensors.items())
            if key not in counts:
                counts[key] = _work_of_launch(launch)
            return counts[key]
        case _:
            return _Work(short_name(name), unknown="launched by what is not counted")


def _work_of_launch(launch: Launch) -> _Work:
    traffic, unknown = launch_traffic(launch)
    if traffic is None:
        return _Work(launch.name, unknown=unknown)
    return _Work(launch.name, traffic.device_bytes(launch.tensors), dict(traffic.flops))


def _work_of_helper(helper: HelperOp) -> _Work:
    unit = "half" if helper.dtype in HALF else "float"
    return _Work(helper.name.rpartition(".")[0], helper.bytes, {unit: helper.flops} if helper.flops else {})


def _together(a: MeasuredKernel, b: MeasuredKernel) -> MeasuredKernel:
    flops = None if a.flops is None else dict(Counter(a.flops) + Counter(b.flops))
    return replace(
        a,
        launches=a.launches + b.launches,
        microseconds=a.microseconds + b.microseconds,
        num_bytes=None if a.num_bytes is None else a.num_bytes + b.num_bytes,
        flops=flops,
    )


def short_name(name: str) -> str:
    """A kernel's C++ name without its return type, namespaces, template and function arguments."""
    plain = re.split(r"[<(]", name.removeprefix("void ").replace("(anonymous namespace)::", ""), maxsplit=1)[0]
    return plain.rpartition("::")[2].strip() or name


class _Bench:
    """One subject on one device. Our own comes first: its bytes and its output are what the others stand beside."""

    def __init__(self, subject: Subject, device: Device, folder: Path, seconds: float):
        self._subject, self._device, self._folder, self._seconds = subject, device, folder, seconds
        self._flops = pass_flops(subject)
        self._num_bytes: dict[str, int] = {}

    def ours(self) -> Measured:
        with watch_launches() as session:
            self._call = make_call(self._subject, self._device.torch_device)
            outputs = self._call.forward()
            self._y = outputs[0].detach()
            self._num_bytes["forward"] = self._call.forward_bytes(outputs)
            if self._call.leaves:
                dy = torch.ones_like(outputs[0])
                grads = torch.autograd.grad(outputs[0], self._call.leaves, dy, allow_unused=True)
                self._num_bytes["backward"] = self._call.backward_bytes(dy, grads)
        return self._measure(_Candidate(OURS, self._call.forward, self._call.leaves), session)

    def baseline(self, baseline: Baseline) -> Measured:
        absent = baseline.refusal(self._call.inputs)
        if absent or not baseline.is_installed:
            return Measured(baseline.name, absent=absent or f"not installed; {baseline.install}")
        try:
            run, leaves = baseline.prepare(self._call.inputs, needs_grad=bool(self._call.leaves))
            error = self._error_of(run())
            return replace(self._measure(_Candidate(baseline.name, lambda: (run(),), leaves), None), error=error)
        except FOREIGN_ERRORS as error:
            self._device.forget()
            said = str(error).strip().partition("\n")[0]
            return Measured(baseline.name, absent=f"raised {type(error).__name__}: {said}")

    def _error_of(self, y: Tensor) -> float:
        """Where baseline and ours compute the same, this is a rounding error."""
        ours = self._y.float()
        return ((y.detach().float() - ours).abs().max() / ours.abs().max()).item()

    def _measure(self, candidate: _Candidate, session: LiveSession | None) -> Measured:
        passes: dict[str, Callable[[], object]] = {"forward": candidate.forward}
        peaks = {"forward": self._device.peak_bytes(candidate.forward)}
        if candidate.leaves:
            peaks["backward"] = self._device.peak_bytes(candidate.train)
            y = candidate.forward()[0]
            dy = torch.randn_like(y)
            passes["backward"] = lambda: torch.autograd.grad(
                y, candidate.leaves, dy, retain_graph=True, allow_unused=True
            )
        timings = time_interleaved(passes, clock=self._device.clock, budget=self._seconds)
        marked: dict[str, Marked] = {}

        def recorded(name: str) -> Callable[[], object]:
            def run() -> None:
                session.record(passes[name])
                marked[name] = session.marked

            return passes[name] if session is None else run

        trace = self._folder / f"{self._subject.name}_{candidate.name.replace(' ', '_')}.trace.json.gz"
        self._device.trace({name: recorded(name) for name in passes}, trace)
        times = read_trace(trace, tuple(passes))
        return Measured(
            candidate.name,
            tuple(self._pass(name, timings[name], times[name], marked.get(name), peaks[name]) for name in passes),
            trace=trace,
        )

    def _pass(
        self, name: str, timing: Timing, times: PassTimes, marked: Marked | None, peak_bytes: int
    ) -> MeasuredPass:
        kernels = join(times, marked)
        flops = self._flops[name] if self._flops else _sum_of(kernels)
        return MeasuredPass(
            name, timing, kernels, times.repeats, times.left_out, self._num_bytes[name], flops, peak_bytes
        )


def _sum_of(kernels: tuple[MeasuredKernel, ...]) -> dict[str, int] | None:
    """FLOP of all kernels, None if those of one are not known."""
    if not kernels or any(kernel.flops is None for kernel in kernels):
        return None
    return dict(sum((Counter(kernel.flops) for kernel in kernels), Counter()))
