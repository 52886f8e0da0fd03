"""`subquad profile` as on a GPU, from end to end on a device that is made up; every number against hand counts."""

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import triton

from subquad.benchmarks import profile, timing
from subquad.benchmarks.profile import baselines, device, here
from subquad.benchmarks.profile.baselines import BASELINES, Baseline
from subquad.benchmarks.profile.calls import plan_subject
from subquad.benchmarks.profile.device import find_device
from subquad.benchmarks.profile.here import measure_here, run_under_proton, write_proton
from subquad.benchmarks.profile.measure import check_fits, measure_subject

from .fake_gpu import KERNEL_US, PASS_MS, FakeDevice, h100

CPU = torch.device("cpu")
B, T, D, W = 1, 24, 8, 3
SIZES = dict(b=B, t=T, d=D, w=W, activation="silu")
TRACED = 3
MEDIAN_US = KERNEL_US + 1  # of three repetitions, each one longer than the one before


class NoDriver:
    """What Triton would ask; the interpreter launches nothing through it."""

    launcher_cls = None


@pytest.fixture
def small_world(monkeypatch):
    """A cache that is emptied fast, and a driver where Triton finds none."""
    monkeypatch.setattr(timing, "FLUSH_BYTES", 64)
    monkeypatch.setattr(device, "TRACED", TRACED)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDriver())


def subject_of(name="short_conv", sizes=SIZES, is_mixer=False):
    return plan_subject(name, is_mixer=is_mixer, sizes=sizes, dtype="float32")


def test_from_end_to_end_in_the_interpreter(small_world, tmp_path, capsys):
    record, files = measure_here(subject_of(), FakeDevice(), tmp_path)
    printed = capsys.readouterr().out
    assert "on NVIDIA H100 80GB HBM3: measured" in printed and "Proton: needs a GPU" in printed
    assert "causal-conv1d: not installed; pip install --no-build-isolation causal-conv1d" in printed
    assert record["measured"] is True and record["kind"] == "profile"
    assert all(file.exists() and file.stat().st_size for file in files)
    assert {file.name for file in files} == {
        "short_conv.png", "short_conv_subquad.trace.json.gz", "short_conv_grouped_conv1d.trace.json.gz",
    }  # fmt: skip
    json.dumps(record, allow_nan=False)

    named = {one["name"]: one for one in record["candidates"]}
    assert list(named) == ["subquad", "causal-conv1d", "fla causal_conv1d", "grouped conv1d"]
    forward, backward = named["subquad"]["passes"]
    inputs = (B * T * D + D * W + D) * 4
    assert forward["compulsory_bytes"] == inputs + (B * T * D + B * (W - 1) * D) * 4
    assert backward["compulsory_bytes"] == inputs + B * T * D * 4 + inputs
    for one, flops in ((forward, 2 * B * T * D * W), (backward, 4 * B * T * D * W)):
        assert one["microseconds"] == pytest.approx(PASS_MS * 1e3) and one["flops"] == {"float": flops}
        assert one["gb_per_second"] == pytest.approx(one["compulsory_bytes"] / 5e6)
        assert one["bandwidth_share"] == pytest.approx(one["gb_per_second"] / 3350)
        assert one["repeats"] == TRACED and one["left_out"] == 0 and one["peak_bytes"] > 0 and one["bound"] == "memory"
        assert all(kernel["microseconds"] % MEDIAN_US == 0 for kernel in one["kernels"])
    peer = named["grouped conv1d"]
    assert peer["difference_from_ours"] < 1e-6 and [one["pass"] for one in peer["passes"]] == ["forward", "backward"]
    [kernel] = peer["passes"][0]["kernels"]
    assert kernel["microseconds"] == MEDIAN_US and kernel["device_bytes"] is None


def test_decoding_has_no_backward_pass(small_world, tmp_path):
    sizes = dict(b=2, t=1, d=D, w=W, bias=False, state=True)
    ours, *others = measure_subject(subject_of(sizes=sizes), FakeDevice(), tmp_path, seconds=0.0)
    [forward] = ours.passes
    x, state = 2 * D * 4, 2 * (W - 1) * D * 4
    assert forward.name == "forward" and forward.num_bytes == 2 * x + D * W * 4 + 2 * state
    assert others[-1].absent == "has no state"


def test_a_mixer_goes_on_from_the_state_of_the_call_before(small_world, tmp_path, capsys):
    subject = subject_of("attention", dict(b=1, t=1, d_model=32, num_heads=2, past=5), is_mixer=True)
    record, _ = measure_here(subject, FakeDevice(), tmp_path)
    [ours] = record["candidates"]
    [forward] = ours["passes"]
    assert {kernel["kernel"] for kernel in forward["kernels"]} >= {"aten.mm"}
    assert "A mixer has no baselines" in capsys.readouterr().out


def test_a_baseline_that_raises_does_not_stop_the_rest(small_world, tmp_path, monkeypatch):
    def broken() -> None:
        raise RuntimeError("no kernel image\nfor this device")

    first = Baseline("broken", broken, lambda inputs: "")
    monkeypatch.setitem(baselines.BASELINES, "short_conv", (first, *BASELINES["short_conv"]))
    fake = FakeDevice()
    found = {one.name: one for one in measure_subject(subject_of(), fake, tmp_path, seconds=0.0)}
    assert found["broken"].absent == "raised RuntimeError: no kernel image" and fake.cuda.emptied == 1
    assert found["grouped conv1d"].passes


def test_inputs_that_the_memory_cannot_hold_are_refused_before_they_are_made():
    subject = subject_of(sizes=SIZES | {"t": 10**9})
    with pytest.raises(ValueError, match=r"the inputs take 32\.0 GB, but the GPU has 1\.0 GB; give smaller sizes"):
        check_fits(subject, FakeDevice(h100(total_memory=10**9)))


def test_without_a_gpu_and_a_target_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU here, so nothing can be measured; give --target"):
        find_device()


def test_the_current_gpu_is_meant(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(device, "Device", lambda torch_device: torch_device)
    assert find_device() == torch.device("cuda", 3)


def test_the_command_without_a_target_measures(small_world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(profile._dispatch, "INTERPRET", False)
    monkeypatch.setattr(profile, "find_device", lambda: "the device")
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(profile, "measure_here", lambda *asked: ({"kind": "profile", "asked": asked[1]}, [picture]))
    assert profile.run_profile("short_conv", out=tmp_path) == 0
    assert json.loads((tmp_path / "records.jsonl").read_text()) == {"kind": "profile", "asked": "the device"}
    assert f"wrote {picture}" in capsys.readouterr().out


def test_proton_sees_both_passes(monkeypatch, tmp_path):
    said = []

    class Scope:
        def __init__(self, name):
            said.append(name)

        __enter__ = __exit__ = lambda self, *_: None

    fake = ModuleType("triton.profiler")
    fake.start = lambda name, hook: said.append((name, hook))
    fake.scope, fake.finalize = Scope, lambda: said.append("end")
    monkeypatch.setitem(sys.modules, "triton.profiler", fake)
    monkeypatch.setattr(triton, "profiler", fake, raising=False)
    monkeypatch.setattr(here, "PROTON_REPEATS", 1)
    assert run_under_proton(subject_of(), CPU, tmp_path / "tree") == tmp_path / "tree.hatchet"
    assert said == [(str(tmp_path / "tree"), "triton"), "forward", "backward", "end"]


def test_proton_runs_in_a_process_of_its_own_and_may_fail(monkeypatch, tmp_path):
    class Pool:
        def __init__(self, workers, mp_context):
            assert mp_context.get_start_method() == "spawn"

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

        def submit(self, run, subject, torch_device, path):
            return SimpleNamespace(result=lambda: results.pop()(path))

    def fail(path):
        raise RuntimeError("counters are taken")

    results = [fail, lambda path: path]
    monkeypatch.setattr(here, "ProcessPoolExecutor", Pool)
    there = SimpleNamespace(torch_device=torch.device("cuda", 0))
    assert write_proton(subject_of(), there, tmp_path) == (tmp_path, "")
    assert write_proton(subject_of(), there, tmp_path) == (None, "RuntimeError: counters are taken")
    monkeypatch.setattr(here, "PROTON", "triton.no_such_module")
    assert write_proton(subject_of(), there, tmp_path) == (None, "not in this build of Triton")


COMPILED = """
import json, sys
from pathlib import Path
from tempfile import TemporaryDirectory
from subquad.benchmarks import timing
from subquad.benchmarks._without_device import cpu_tensors_reach_triton, driven_by
from subquad.benchmarks.profile import device
from subquad.benchmarks.profile.calls import plan_subject
from subquad.benchmarks.profile.capture import Session, _RecordingDriver
from subquad.benchmarks.profile.here import measure_here
from subquad.benchmarks.profile.targets import GPUS
sys.path.insert(0, {tests!r})
from fake_gpu import FakeDevice

timing.FLUSH_BYTES, device.TRACED = 64, {traced}
subject = plan_subject("short_conv", is_mixer=False, sizes={sizes!r}, dtype="bfloat16")
with TemporaryDirectory() as cache, driven_by(_RecordingDriver(Session(), GPUS["h100"]), cache):
    with cpu_tensors_reach_triton():
        record, _ = measure_here(subject, FakeDevice(), Path({folder!r}))
Path({folder!r}, "record.json").write_text(json.dumps(record))
"""


def test_launches_find_their_times_bytes_and_products(tmp_path):
    """Our kernels compiled for the GPU and launched as there, by a launcher that runs nothing: all but their times."""
    sizes = dict(b=2, t=256, d=256, w=3, activation="silu")
    program = COMPILED.format(sizes=sizes, traced=TRACED, folder=str(tmp_path), tests=str(__file__).rpartition("/")[0])
    done = subprocess.run([sys.executable, "-c", program], env=without_interpreter(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    forward, backward = record["candidates"][0]["passes"]
    [kernel] = counted(forward)
    assert kernel["kernel"] == "short_conv_fwd_kernel" and kernel["launches"] == 1
    assert kernel["device_bytes"] == forward["compulsory_bytes"] and kernel["microseconds"] == MEDIAN_US
    assert kernel["gb_per_second"] == pytest.approx(kernel["device_bytes"] / MEDIAN_US / 1e3)
    names = [kernel["kernel"] for kernel in counted(backward)]
    assert "short_conv_bwd_kernel" in names and "aten.sum" in names


def counted(one: dict) -> list[dict]:
    """The device that is made up runs a kernel for operations that run none as well, such as views."""
    return [kernel for kernel in one["kernels"] if kernel["device_bytes"] is not None]


def without_interpreter() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
