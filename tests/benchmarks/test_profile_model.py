"""The arithmetic of the modelled profile against cases computed by hand."""

import pytest
import torch

from subquad.benchmarks.profile.capture import Captured, HelperOp
from subquad.benchmarks.profile.kernel_facts import KernelFacts
from subquad.benchmarks.profile.model import (
    helper_microseconds,
    loop_microseconds,
    memory_microseconds,
    model_pass,
    occupancy,
    product_microseconds,
)
from subquad.benchmarks.profile.pipes import Work
from subquad.benchmarks.profile.table import summary
from subquad.benchmarks.profile.targets import GPUS, find_gpu

A100, H100, B200, L40S, MI300 = GPUS.values()


@pytest.mark.parametrize("gpu, half, tf32, single", [
    (A100, 312, 156, 19.5),
    (H100, 989, 495, 61.8),  # float32 at the clock of the matrix units; the data sheet's 67 is at 1.98 GHz
    (B200, 2250, 1125, 70.3),
    (L40S, 366, 183, 91.6),
    (MI300, 1307, 654, 163.4),
])  # fmt: skip
def test_peaks_are_those_of_the_data_sheets(gpu, half, tf32, single):
    found = [gpu.peak_tflops(rate) for rate in (gpu.half_rate, gpu.tf32_rate, gpu.float_rate)]
    assert found == pytest.approx([half, tf32, single], rel=2e-3)


@pytest.mark.parametrize("gpu, registers, shared, num_warps, blocks, limit", [
    (A100, 255, 0, 4, 2, "registers"),  # 256 x 32 registers a warp: 2 warps a part
    (A100, 128, 0, 4, 4, "registers"),
    (A100, 129, 0, 4, 3, "registers"),  # 136 a thread: 3 warps a part
    (A100, 32, 0, 4, 16, "registers"),
    (A100, 16, 0, 1, 32, "warps"),  # 32 blocks at most
    (A100, 32, 82 * 1024, 4, 1, "shared memory"),  # 2 x 83 KiB do not go into 164
    (A100, 32, 81 * 1024, 4, 2, "shared memory"),
    (H100, 128, 96 * 1024, 8, 2, "registers"),
    (H100, 64, 113 * 1024, 8, 2, "shared memory"),  # 2 x 114 KiB are just the 228
    (H100, 64, 113 * 1024 + 1, 8, 1, "shared memory"),
    (L40S, 32, 32 * 1024, 4, 3, "shared memory"),  # 4 x 33 KiB do not go into 100
    (L40S, 32, 0, 4, 12, "warps"),
    (MI300, 128, 16 * 1024, 4, 4, "registers"),  # 4 wavefronts a part
    (MI300, 64, 40 * 1024, 4, 1, "shared memory"),
    (MI300, 24, 0, 4, 8, "warps"),
])  # fmt: skip
def test_occupancy_is_that_of_the_makers_calculators(gpu, registers, shared, num_warps, blocks, limit):
    found = occupancy(gpu, registers=registers, shared=shared, num_warps=num_warps)
    assert found.blocks == blocks and found.warps == blocks * num_warps
    assert found.share == blocks * num_warps / gpu.max_warps and found.limit == limit


def test_tensor_memory_is_shared_by_blocks():
    assert occupancy(B200, registers=32, shared=0, num_warps=4, tensor_columns=256).blocks == 2


def test_memory_time_is_bytes_over_bandwidth():
    assert memory_microseconds(3_350_000, H100) == pytest.approx(1.0)
    assert memory_microseconds(2_039_000_000, A100) == pytest.approx(1000.0)


def test_product_time_is_flop_over_the_peak_of_busy_multiprocessors():
    flops = {"half": 989_400_000, "tf32": 0}
    whole = product_microseconds(flops, 132, H100)
    assert whole == pytest.approx(1.0, rel=1e-3)
    assert product_microseconds(flops, 10_000, H100) == whole
    assert product_microseconds(flops, 66, H100) == pytest.approx(2 * whole)
    assert product_microseconds({"tf32": 989_400_000}, 132, H100) == pytest.approx(2 * whole)
    assert product_microseconds({"float": 989_400_000}, 132, H100) == pytest.approx(16 * whole)


def facts(hot: Work | None) -> KernelFacts:
    return KernelFacts(4, 100, 0, 1024, 0, 500, {}, hot, True, loop_spill=0, hot_spill=0)


def test_loop_time_is_passes_at_the_pace_of_the_busiest_pipe():
    clocks = dict(issue=366.0, matrix=100.0, special=50.0, float=0.0, integer=0.0, shared=183.0)
    hot = Work(instructions=366, products={"HGMMA": 8}, flops=409_600, clocks=clocks, spilled=0)
    assert hot.busiest == "issue" and hot.matrix_share == 100 / 366
    # 1320 passes of 366 clocks on 132 multiprocessors at 1830 clocks a microsecond
    assert loop_microseconds(facts(hot), {"half": 1320 * 409_600}, 4096, H100) == pytest.approx(2.0)
    assert loop_microseconds(facts(hot), {"half": 1320 * 409_600}, 1, H100) == pytest.approx(264.0)
    assert loop_microseconds(facts(hot), {"float": 10**9}, 4096, H100) == 0.0  # not on matrix units
    assert loop_microseconds(facts(None), {"half": 10**9}, 4096, H100) == 0.0


def test_helpers_take_the_longer_of_memory_and_arithmetic():
    copy = HelperOp("aten.copy_.default", 3_350_000, 0, torch.float32)
    assert helper_microseconds(copy, H100) == pytest.approx(1.0)
    product = HelperOp("aten.mm.default", 3_350_000, 9_894_000_000, torch.bfloat16)
    assert helper_microseconds(product, H100) == pytest.approx(10.0, rel=1e-3)


def test_helpers_are_summed_by_name():
    copy = HelperOp("aten.copy_.default", 1_000_000, 0, torch.float32)
    add = HelperOp("aten.add.Tensor", 5_000_000, 0, torch.float32)
    found = model_pass("forward", Captured((), (copy, add, copy)), 7_000_000, H100)
    assert found.helpers == {"aten.add.Tensor": 5_000_000, "aten.copy_.default": 2_000_000}
    assert (found.helper_count, found.helper_bytes, found.launches, found.device_bytes) == (3, 7_000_000, 0, 0)
    assert found.microseconds == pytest.approx(7_000_000 / 3_350_000)


def test_what_fits_in_the_cache_is_said_to_be_no_sure_bound():
    small, large = (model_pass("forward", Captured((), ()), count, H100) for count in (49_000_000, 51_000_000))
    assert "or less where the cache of 50 MB holds" in summary(small, H100) and "cache" not in summary(large, H100)


def test_unknown_targets_list_the_known():
    with pytest.raises(ValueError, match="unknown target 'v100'; expected one of a100, h100, b200, l40s, mi300"):
        find_gpu("v100")
