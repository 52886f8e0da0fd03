"""The arithmetic of the measured profile, every number against one computed by hand."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from subquad.benchmarks.profile.calls import borders_of, plan_subject
from subquad.benchmarks.profile.capture import HelperOp, Launch
from subquad.benchmarks.profile.measure import Measured, MeasuredKernel, MeasuredPass, join, short_name
from subquad.benchmarks.profile.measured_table import (
    describe,
    kernel_cells,
    measured_record,
    pass_cells,
    print_measured,
)
from subquad.benchmarks.profile.picture import Point, draw_roofline, measured_points
from subquad.benchmarks.profile.roof import DEVICES, Rates, find_roof, rates, roof_of
from subquad.benchmarks.profile.targets import GPUS
from subquad.benchmarks.profile.trace import KernelTime, PassTimes, read_trace
from subquad.benchmarks.profile.work import pass_flops, visible_pairs
from subquad.benchmarks.timing import Timing

from .fake_gpu import h100, kernel

H100 = roof_of(GPUS["h100"])  # 3350 GB/s, 989 TFLOP/s on halves


def subject(name: str, **sizes):
    return plan_subject(name, is_mixer=False, sizes=sizes, dtype="bfloat16")


@pytest.mark.parametrize("t, s, window", [
    (1, 1, None), (5, 5, None), (3, 9, None), (1, 9, 4), (9, 9, 4), (5, 9, 20), (6, 9, 5), (2, 9, 1), (4, 4, 4),
])  # fmt: skip
def test_visible_pairs_are_those_of_the_mask(t, s, window):
    pairs = sum(
        1 for i in range(t) for j in range(s) if j <= i + s - t and (window is None or j > i + s - t - window)
    )  # fmt: skip
    assert visible_pairs(t, s, window) == pairs


@pytest.mark.parametrize("name, sizes, unit, forward, backward", [
    # 2 x 3 heads; 4 + 3 + 2 + 1 pairs; 2 FLOP x (8 + 16) forward, 2 x (3 x 8 + 2 x 16) backward
    ("causal_attention", dict(b=2, t=4, h=3, k=8, v=16), "half", 6 * 10 * 48, 6 * 10 * 112),
    ("causal_attention", dict(b=1, t=1, s=100, h=1, k=8, v=8), "half", 100 * 32, 100 * 80),
    # 7 tokens in 2 sequences are 3 and 4: 6 + 10 pairs
    ("causal_attention", dict(b=1, t=7, num_seqs=2, h=1, k=8, v=8), "half", 16 * 32, 16 * 80),
    ("linear_attention", dict(b=1, t=5, h=2, k=4, v=8), "half", 10 * 4 * 32, 10 * 10 * 32),
    ("linear_attention", dict(b=1, t=5, h=2, k=4, v=8, normalize=True), "half", 10 * 4 * 36, 10 * 10 * 36),
    # 1 + 4 + 10 features, and a column of ones beside v
    ("polynomial_attention", dict(b=1, t=5, h=2, k=4, v=7), "half", 10 * 4 * 15 * 8, 10 * 10 * 15 * 8),
    ("short_conv", dict(b=2, t=5, d=3, w=4), "float", 2 * 30 * 4, 4 * 30 * 4),
    # n = 32: 2.5 x 32 x 5 = 400 a transform; 2 x 6 + 3 of them, and 3 x 6 + 2 x 3
    ("long_conv", dict(b=2, t=16, d=3, l=16), "float", 400 * 15, 400 * 24),
])  # fmt: skip
def test_flop_of_an_op_are_those_of_its_equation(name, sizes, unit, forward, backward):
    assert pass_flops(subject(name, **sizes)) == {"forward": {unit: forward}, "backward": {unit: backward}}


def test_a_mixer_has_no_equation_and_float32_multiplies_at_most_as_tf32():
    assert pass_flops(plan_subject("based", is_mixer=True, sizes={}, dtype="bfloat16")) is None
    assert list(pass_flops(replace(subject("linear_attention"), dtype="float32"))["forward"]) == ["tf32"]


def test_packed_sequences_are_of_equal_length_but_for_what_is_left():
    assert borders_of(12, 3) == (0, 4, 8, 12) and borders_of(14, 3) == (0, 4, 8, 14) and borders_of(2, 3)[-2:] == (0, 2)


def test_rates_are_work_over_time():
    # 335 MB in 200 us: 1675 GB/s, half of the bandwidth; 19.788e9 FLOP: 98.94 TFLOP/s, a tenth of the peak
    found = rates(200.0, 335_000_000, {"half": 19_788_000_000}, H100)
    assert found.gb_per_second == pytest.approx(1675) and found.bandwidth_share == pytest.approx(0.5)
    assert found.tflops == pytest.approx(98.94) and found.peak_share == pytest.approx(0.1, rel=1e-3)
    assert found.bound == "memory"
    assert rates(200.0, 3_350_000, {"half": 19_788_000_000}, H100).bound == "arithmetic"
    both = rates(100.0, 0, {"half": 9_894_000_000, "tf32": 9_894_000_000}, H100)  # 10 us and 20 us at their peaks
    assert both.peak_share == pytest.approx(0.3, rel=1e-3) and both.tflops == pytest.approx(197.88)


def test_what_is_not_known_is_not_invented():
    nothing = Rates(None, None, None, None, None)
    assert rates(None, 10, {"half": 10}, H100) == rates(0.0, 10, {"half": 10}, H100) == nothing
    found = rates(1.0, 1000, {"half": 10}, replace(H100, bandwidth_gb=None, tflops={}))
    assert (found.gb_per_second, found.bandwidth_share, found.peak_share, found.bound) == (1.0, None, None, None)
    assert rates(1.0, None, None, H100) == nothing


def test_known_gpus_are_told_by_the_beginning_of_their_names():
    assert find_roof(h100()).bandwidth_gb == 3350 and find_roof(h100(name="NVIDIA H100 PCIe")).bandwidth_gb == 2039
    assert find_roof(h100(name="NVIDIA A100-SXM4-40GB")).bandwidth_gb == 1555
    assert find_roof(h100(name="AMD Instinct MI300X OAM")).bandwidth_gb == 5300
    halves = {name: roof_of(gpu).tflops["half"] for name, gpu in DEVICES.items()}
    assert halves["NVIDIA H100 PCIe"] == pytest.approx(756, rel=2e-3)
    assert halves["NVIDIA H100 NVL"] == pytest.approx(835, rel=2e-3)
    assert halves["NVIDIA L40S"] == pytest.approx(362, rel=2e-2)


def test_a_gpu_without_a_data_sheet_is_judged_by_its_clocks():
    # A30: 24 transfers... 1215 MHz x 2 x 3072 bits / 8 = 933 GB/s; 56 x 2048 x 1.44 GHz = 165 TFLOP/s
    a30 = find_roof(h100(name="NVIDIA A30", major=8, minor=0, gcnArchName="", multi_processor_count=56,
                         clock_rate=1_440_000, memory_clock_rate=1_215_000, memory_bus_width=3072))  # fmt: skip
    assert a30.bandwidth_gb == pytest.approx(933.12) and a30.tflops["half"] == pytest.approx(165.15, rel=1e-3)
    assert "no data sheet is stored" in a30.source and "rates of the A100" in a30.source
    # RTX 4090: 10501 MHz x 2 x 384 bits / 8 = 1008 GB/s; the matrix units of 8.9 differ from product to product
    ada = find_roof(h100(name="NVIDIA GeForce RTX 4090", major=8, minor=9, memory_clock_rate=10_501_000,
                         memory_bus_width=384))  # fmt: skip
    assert ada.bandwidth_gb == pytest.approx(1008.1, rel=1e-4) and not ada.tflops
    assert "not known: its arithmetic rates" in ada.source
    amd = find_roof(SimpleNamespace(name="AMD Instinct MI325X", major=9, minor=4, gcnArchName="gfx942:sramecc+:xnack-",
                                    multi_processor_count=304, clock_rate=2_100_000))  # fmt: skip
    assert amd.bandwidth_gb is None and amd.tflops["half"] == pytest.approx(1307, rel=2e-3)
    assert "not known: its bandwidth" in amd.source and "an unknown bandwidth" in describe(amd)


def write(path: Path, events: list[dict]) -> Path:
    content = json.dumps({"traceEvents": events}).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def mark(name: str, ts: float, dur: float, tid: int = 1) -> dict:
    return {"ph": "X", "cat": "user_annotation", "name": f"subquad: {name}", "ts": ts, "dur": dur, "pid": 1, "tid": tid}


def launches(*timed: tuple[str, float, float]) -> list[dict]:
    """(name, when it is launched, how long it runs)"""
    events = []
    for one in timed:
        events += kernel(*one, events)
    return events


def test_kernels_belong_to_the_pass_and_the_mark_in_which_they_were_launched(tmp_path):
    marks = [
        mark("forward", 0, 100), mark("launch 0", 10, 10), mark("forward", 200, 100), mark("launch 0", 210, 10),
        mark("backward", 400, 100), mark("launch 0", 410, 50, tid=9), mark("launch 1", 420, 10, tid=9),
    ]  # fmt: skip
    kernels = launches(("flush", 150, 90.0), ("a", 12, 5.0), ("b", 50, 3.0), ("a", 212, 7.0), ("b", 250, 4.0),
                       ("c", 425, 8.0), ("d", 435, 1.0))  # fmt: skip
    found = read_trace(write(tmp_path / "trace.json.gz", marks + kernels), ("forward", "backward"))
    assert found["forward"] == PassTimes((KernelTime("a", "launch 0", 6.0), KernelTime("b", "", 3.5)), 2, 0)
    assert found["backward"].kernels == (KernelTime("c", "launch 1", 8.0), KernelTime("d", "launch 0", 1.0))


def test_repetitions_that_lost_a_kernel_do_not_count(tmp_path):
    marks = [mark("forward", 100 * i, 90) for i in range(4)]
    kernels = launches(("a", 1, 1.0), ("b", 2, 1.0), ("a", 101, 2.0), ("b", 102, 3.0), ("a", 201, 9.0),
                       ("a", 301, 6.0), ("b", 302, 8.0))  # fmt: skip
    found = read_trace(write(tmp_path / "trace.json", marks + kernels), ("forward",))["forward"]
    assert [kernel.microseconds for kernel in found.kernels] == [2.0, 3.0] and (found.repeats, found.left_out) == (3, 1)
    empty = read_trace(write(tmp_path / "trace.json", marks), ("forward",))["forward"]
    assert empty == PassTimes((), 0, 4)


TTIR = """
module {
  tt.func public @scale_kernel(%x_ptr: !tt.ptr<bf16>, %n_ptr: !tt.ptr<i32>) {
    %xs = tt.splat %x_ptr : !tt.ptr<bf16> -> tensor<64x!tt.ptr<bf16>>
    %x = tt.load %xs : tensor<64x!tt.ptr<bf16>>
    %d = tt.dot %a, %b, %c : tensor<32x16xbf16> * tensor<16x64xbf16> -> tensor<32x64xf32>
    BODY
    tt.store %xs, %x : tensor<64x!tt.ptr<bf16>>
    tt.return
  }
}
"""


def launch(grid=(10, 1, 1), body="") -> Launch:
    compiled = SimpleNamespace(hash="1", asm={"ttir": TTIR.replace("BODY", body)})
    return Launch("scale_kernel", grid, {}, {"x_ptr": 1280, "n_ptr": 4}, compiled, "")


def test_kernels_meet_what_launched_them():
    product = HelperOp("aten.mm.default", 1000, 5000, torch.bfloat16)
    marked = {"launch 0": launch(), "launch 1": launch(), "launch 2": product, "launch 3": launch(grid=(5, 1, 1))}
    times = PassTimes((
        KernelTime("scale_kernel", "launch 0", 2.0), KernelTime("scale_kernel", "launch 1", 3.0),
        KernelTime("void cutlass::gemm<int>(int)", "launch 2", 4.0), KernelTime("splitK", "launch 2", 1.0),
        KernelTime("scale_kernel", "launch 3", 1.5), KernelTime("void at::native::foreign<float>(int)", "", 0.5),
    ), 3)  # fmt: skip
    two, gemm, smaller, foreign = join(times, marked)
    # 10 programs load and store 64 numbers of 2 bytes: the 1280 bytes of x, once each way
    assert (two.launches, two.microseconds, two.num_bytes) == (2, 5.0, 2 * 2560)
    assert two.flops == {"half": 2 * 10 * 2 * 32 * 16 * 64}
    assert (gemm.name, gemm.microseconds, gemm.num_bytes, gemm.flops) == ("aten.mm", 5.0, 1000, {"half": 5000})
    assert smaller.num_bytes == 1280 and smaller.launches == 1
    assert (foreign.name, foreign.num_bytes, foreign.flops) == ("foreign", None, None) and foreign.unknown


def test_without_marks_only_names_and_times_are_known():
    times = PassTimes((KernelTime("flash_fwd", "", 2.0), KernelTime("flash_fwd", "", 3.0)), 3)
    [row] = join(times, None)
    assert (row.name, row.launches, row.microseconds, row.num_bytes, row.unknown) == ("flash_fwd", 2, 5.0, None, "")


def test_what_depends_on_memory_is_said_to():
    body = "%n = tt.load %n_ptr : !tt.ptr<i32>\n    scf.for %i = %n to %n step %n : i32 {\n    }"
    [row] = join(PassTimes((KernelTime("scale_kernel", "launch 0", 2.0),), 3), {"launch 0": launch(body=body)})
    assert row.num_bytes is None and "depends on values in memory" in row.unknown


def test_names_of_kernels_are_shortened():
    assert short_name("void at::native::(anonymous namespace)::cunn_SoftMax<4, float>(float*)") == "cunn_SoftMax"
    assert short_name("ampere_bf16_s16816gemm_bf16_128x64_tn") == "ampere_bf16_s16816gemm_bf16_128x64_tn"
    assert short_name("Memset (Device)") == "Memset"


KERNELS = (
    MeasuredKernel("walk_kernel", ("walk_kernel",), 2, 75.0, 167_500_000, {"half": 7_420_500_000}),
    MeasuredKernel("aten.sum", ("reduce_kernel",), 1, 25.0, None, None, "why not"),
)
FORWARD = MeasuredPass(
    "forward", Timing(125e-6, 120e-6, 7, 0), KERNELS, 20, 1, 335_000_000, {"half": 9_894_000_000}, 64_000_000
)  # fmt: skip


def test_cells_of_the_table():
    # the pass: 335 MB in 125 us are 2680 GB/s, 80 %; 9.894e9 FLOP are 79.2 TFLOP/s, 8 %
    assert pass_cells(FORWARD, H100) == [
        "  forward", "", "125.0", "", "335.0", "2680", "80%", "79.2", "8%", "memory", "64.0",
    ]  # fmt: skip
    # the kernel: 167.5 MB in 75 us are 2233 GB/s, 67 %; 98.9 TFLOP/s, 10 %; 75 of 100 us
    first, second = (kernel_cells(kernel, FORWARD, H100) for kernel in KERNELS)
    assert first == ["    walk", "2", "75.0", "75%", "167.5", "2233", "67%", "98.9", "10%", "memory", ""]
    assert second == ["    aten.sum", "1", "25.0", "25%", "?", "-", "-", "-", "-", "-", ""]


def test_the_record_and_the_notes(capsys, tmp_path):
    peer = Measured("peer", (replace(FORWARD, kernels=(), repeats=0),), error=0.5, trace=tmp_path / "peer.json.gz")
    found = [Measured("subquad", (FORWARD,)), peer, Measured("other", absent="not installed; pip install other")]
    print_measured(subject("short_conv"), H100, found)
    printed = " ".join(capsys.readouterr().out.split())
    for line in (
        "other: not installed; pip install other", "peer: its output differs from ours by 50.0% of the largest value",
        "subquad, forward: 20 of 21 repetitions ran the same kernels and count", "subquad, forward, aten.sum: why not",
        "peer, forward: the profiler recorded no kernel", "H100 SXM5 80 GB: 3350 GB/s, 989 TFLOP/s on float16",
    ):  # fmt: skip
        assert line in printed, line
    record = json.loads(json.dumps(measured_record(subject("short_conv"), H100, found, ["a.png"])))
    ours, other, _ = record["candidates"]
    assert record["measured"] is True and record["files"] == ["a.png"] and other["trace"] == "peer.json.gz"
    [one] = ours["passes"]
    assert one["microseconds"] == 125.0 and one["kernel_microseconds"] == 100.0 and one["peak_bytes"] == 64_000_000
    assert one["kernels"][0]["gb_per_second"] == pytest.approx(2233.3, rel=1e-4)


def test_points_of_the_picture(tmp_path):
    one, kernel_point = measured_points([Measured("subquad", (FORWARD,))])
    assert (one.label, one.is_pass) == ("forward", True) and one.intensity == pytest.approx(9894 / 335)
    assert one.tflops == pytest.approx(79.152)
    assert kernel_point == Point("subquad", "walk", pytest.approx(44.30, rel=1e-3), pytest.approx(98.94), False)
    for roof, points in ((H100, [one]), (H100, []), (replace(H100, bandwidth_gb=None, tflops={}), [])):
        draw_roofline(points, roof, "a title", tmp_path / "roofline.png")
        assert (tmp_path / "roofline.png").stat().st_size > 5000
