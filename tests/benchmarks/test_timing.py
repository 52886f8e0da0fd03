"""Timing beside one another, contention, and peak memory, with clocks that are told what to say."""

import time
from itertools import cycle

import pytest
import torch

from subquad.benchmarks import timing
from subquad.benchmarks.timing import (
    CudaClock,
    HostClock,
    Sample,
    Timing,
    peak_bytes,
    speed_ups,
    summarize,
    time_interleaved,
)

CPU = torch.device("cpu")


class ScriptedClock:
    """Plays samples back, in turn for each candidate, and keeps the order of the calls."""

    def __init__(self, **scripts):
        self.scripts = {name: cycle(script) for name, script in scripts.items()}
        self.calls = []

    def measure(self, run, repeats):
        name = run()
        self.calls.append((name, repeats))
        return next(self.scripts[name])


def candidates(*names):
    return {name: lambda name=name: name for name in names}


def test_candidates_take_turns():
    clock = ScriptedClock(a=[Sample(2.0)], b=[Sample(4.0)])
    found = time_interleaved(candidates("a", "b"), clock=clock, samples=3)
    warm_up, rounds = clock.calls[:2], clock.calls[2:]
    assert [name for name, _ in warm_up] == ["a", "b"]
    assert [name for name, _ in rounds] == ["a", "b"] * 3
    assert found == {"a": Timing(2.0, 2.0, 3, 0), "b": Timing(4.0, 4.0, 3, 0)}


def test_short_candidates_are_repeated_and_warmed_twice():
    clock = ScriptedClock(a=[Sample(1e-3)])
    time_interleaved(candidates("a"), clock=clock, samples=1)
    assert clock.calls == [("a", 1), ("a", 1), ("a", 4)]


def test_a_first_call_that_compiles_does_not_decide_the_repeats():
    samples = iter([Sample(0.9), *[Sample(1e-3)] * 10])
    clock = ScriptedClock(a=samples)
    time_interleaved(candidates("a"), clock=clock, samples=1)
    assert clock.calls[-1] == ("a", 4)


def test_disturbed_samples_are_taken_again():
    clock = ScriptedClock(a=[Sample(2.0), Sample(9.0, disturbed=True), Sample(3.0), Sample(9.0, disturbed=True)])
    found = time_interleaved(candidates("a"), clock=clock, samples=2)["a"]
    assert found == Timing(2.5, 2.0, 2, 2)


def test_budget_ends_a_hopeless_round():
    clock = ScriptedClock(a=[Sample(2.0, disturbed=True)])
    found = time_interleaved(candidates("a"), clock=clock, samples=5, budget=0.0)["a"]
    assert found == Timing(2.0, 2.0, 0, 1)


def test_speed_ups_compare_within_undisturbed_rounds():
    calm, noisy = Sample(9.0), Sample(9.0, disturbed=True)
    rounds = [{"ours": Sample(5.0), "peer": Sample(10.0)}, {"ours": Sample(1.0), "peer": Sample(20.0)}]
    disturbed = [{"ours": calm, "peer": noisy}, {"ours": noisy, "peer": calm}]
    assert speed_ups(rounds + disturbed, "ours", "peer") == [2.0, 20.0]
    assert speed_ups(disturbed, "ours", "peer") == [1.0, 1.0]


def test_summary_uses_undisturbed_samples_if_there_are_any():
    assert summarize([Sample(1.0), Sample(5.0, True), Sample(3.0)]) == Timing(2.0, 1.0, 2, 1)
    assert summarize([Sample(4.0, True), Sample(6.0, True)]) == Timing(5.0, 4.0, 0, 2)


def test_host_clock_measures_one_call():
    sample = HostClock(num_threads=2).measure(lambda: time.sleep(0.01), 2)
    assert 0.009 < sample.seconds < 0.5


def test_one_thread_is_timed_on_the_processor():
    """Waiting, for a core or for anything, does not enter."""
    sample = HostClock(num_threads=1).measure(lambda: time.sleep(0.05), 1)
    assert sample.seconds < 0.04
    assert not sample.disturbed


@pytest.mark.parametrize("waited, disturbed", [(0.0, False), (10.0, True)])
def test_waiting_for_a_core_marks_a_sample(monkeypatch, waited, disturbed):
    readings = iter([1.0, 1.0 + waited])
    monkeypatch.setattr(timing, "waiting_seconds", lambda: next(readings))
    assert HostClock(num_threads=2).measure(lambda: time.sleep(0.01), 1).disturbed is disturbed


def test_waiting_is_summed_over_threads(monkeypatch, tmp_path):
    for thread, waited in (("1", 2_000_000_000), ("2", 500_000_000)):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "schedstat").write_text(f"123 {waited} 9\n")
    (tmp_path / "3").mkdir()  # a thread that has just ended
    monkeypatch.setattr(timing, "TASKS", tmp_path)
    assert timing.waiting_seconds() == 2.5
    monkeypatch.setattr(timing, "TASKS", tmp_path / "not Linux")
    assert timing.waiting_seconds() == 0


class FakeCuda:
    """Events that count what is on the queue: each flush takes 100 ms, each run what the test says."""

    def __init__(self):
        self.now = 0.0

    def Event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self)

    def synchronize(self, device):
        self.synchronized = device


class FakeEvent:
    def __init__(self, queue):
        self.queue = queue

    def record(self):
        self.at = self.queue.now

    def elapsed_time(self, end):
        return end.at - self.at


def test_cuda_clock_flushes_before_every_call_and_outside_the_events(monkeypatch):
    monkeypatch.setattr(timing, "FLUSH_BYTES", 64)
    cuda = FakeCuda()
    clock = CudaClock(CPU, cuda=cuda)
    flushes = []

    class Flushed:
        def zero_(self):
            flushes.append(cuda.now)
            cuda.now += 100.0

    clock.flushed = Flushed()
    durations = iter([3.0, 5.0, 4.0])

    def run():
        cuda.now += next(durations)

    sample = clock.measure(run, 3)
    assert sample == Sample(0.004)  # the median of 3, 5 and 4 ms
    assert len(flushes) == 3
    assert cuda.synchronized == CPU


def test_peak_counts_what_is_alive_at_once():
    def run():
        a = torch.ones(1000)
        b = a * 2  # 8000 bytes alive
        del a
        c = b * 2
        del b, c
        torch.ones(1500)

    assert peak_bytes(run, CPU) in range(8000, 8000 + 64)


def test_peak_sees_temporaries_inside_an_operator():
    """(b, h, t, t) scores never leave the operator, and still count."""
    q = torch.randn(1, 1, 256, 4)
    mask = torch.ones(256, 256, dtype=torch.bool).tril()
    small = peak_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True), CPU)
    scores = peak_bytes(lambda: (q @ q.mT).masked_fill(~mask, -torch.inf).softmax(-1) @ q, CPU)
    assert small > 256 * 4 * 4  # the output
    assert scores > 2 * 256 * 256 * 4


def test_peak_repeats_to_the_byte():
    x = torch.randn(64, 64, requires_grad=True)
    peaks = {peak_bytes(lambda: torch.autograd.grad((x @ x).sum(), x), CPU) for _ in range(3)}
    assert len(peaks) == 1


def test_profiler_stays_quiet(capfd):
    peak_bytes(lambda: torch.ones(10), CPU)
    assert capfd.readouterr().err == ""


def test_peak_on_a_gpu_is_above_what_was_there_before():
    class Memory:
        now = peak = 700

        def memory_allocated(self, device):
            return self.now

        def max_memory_allocated(self, device):
            return self.peak

        def reset_peak_memory_stats(self, device):
            self.peak = self.now

        def synchronize(self, device):
            pass

    memory = Memory()
    memory.peak = 5000  # of what ran before

    def run():
        memory.peak, memory.now = 1000, 800

    assert peak_bytes(run, torch.device("cuda", 0), memory) == 300
