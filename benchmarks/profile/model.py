"""A lower bound of the time of each launch, from its machine code and its traffic. A model: nothing is measured."""

from collections import Counter
from dataclasses import dataclass

import torch

from .capture import Captured, HelperOp, Launch
from .kernel_facts import KernelFacts, read_kernel
from .pipes import PARTS
from .targets import GPU
from .traffic import Traffic, UnknownTraffic, count_traffic
from .ttir import parse_function

TENSOR_COLUMNS = 512  # of Blackwell's tensor memory on each multiprocessor
HALF = (torch.float16, torch.bfloat16)

ASSUMPTIONS = (
    "Nothing was run: these are facts about the compiled code and a lower bound that follows from them.",
    "Memory: each launch moves each of its tensors once in each direction, at the bandwidth of the data sheet; "
    "nothing is fetched twice within a launch, nothing stays in the cache between launches (for tensors that fit "
    "in it together the bound is too high).",
    "Arithmetic: the products at the peak of the data sheet, and every pass through the hot loop at full rate with "
    "perfect overlap; of a grid smaller than the GPU only as many multiprocessors work as there are programs.",
    "Not in the model: latency, waiting at barriers, bank conflicts, uneven programs, the time to launch.",
    "Requested bytes count masked elements too. Helper operations of PyTorch read and write each tensor once.",
)


@dataclass(frozen=True)
class Occupancy:
    """What is resident on one multiprocessor.

    share: of the warps that it could hold, in 0..1.
    limit: what prevents one more block: "registers", "shared memory", "warps" or "tensor memory".
    """

    blocks: int
    warps: int
    share: float
    limit: str


def occupancy(gpu: GPU, *, registers: int, shared: int, num_warps: int, tensor_columns: int = 0) -> Occupancy:
    """Blocks that fit on a multiprocessor together, as the makers' occupancy calculators count.

    Args:
        gpu: of whose multiprocessor.
        registers: of a thread.
        shared: bytes of a block.
        num_warps: of a block.
        tensor_columns: of Blackwell's tensor memory, of a block.
    """
    warps_a_part = gpu.registers // _round_up(max(registers, 1), gpu.register_unit)
    blocks = {
        "registers": PARTS * warps_a_part // num_warps,
        "warps": min(gpu.max_warps // num_warps, gpu.max_blocks),
    }
    taken = _round_up(shared + gpu.shared_reserve, gpu.shared_unit)
    if taken:
        blocks["shared memory"] = gpu.shared_bytes // taken
    if tensor_columns:
        blocks["tensor memory"] = TENSOR_COLUMNS // tensor_columns
    limit = min(blocks, key=blocks.__getitem__)
    warps = blocks[limit] * num_warps
    return Occupancy(blocks[limit], warps, warps / gpu.max_warps, limit)


@dataclass(frozen=True)
class KernelModel:
    """Launches of a kernel that are alike.

    traffic: of one launch, None if it depends on values in memory; `unknown` then says how.
    device_bytes: that cross device memory in one launch.
    bounds: lower bounds of one launch in microseconds: "memory", "products", and the busiest pipe of the hot loop.
    """

    name: str
    launches: int
    grid: tuple[int, int, int]
    facts: KernelFacts
    occupancy: Occupancy
    traffic: Traffic | None
    unknown: str
    device_bytes: int | None
    bounds: dict[str, float]

    @property
    def limit(self) -> str:
        """What the largest bound comes from."""
        return max(self.bounds, key=self.bounds.__getitem__) if self.bounds else "not known"

    @property
    def microseconds(self) -> float:
        """Lower bound of one launch."""
        return max(self.bounds.values(), default=0.0)


@dataclass(frozen=True)
class PassModel:
    """A forward or a backward pass.

    compulsory_bytes: inputs and outputs once; backward: inputs, gradients of outputs, and gradients of inputs.
    helpers: bytes that PyTorch's own operations read and write, by name, the heaviest first.
    helper_count, helper_flops, helper_microseconds: of these operations together.
    """

    name: str
    kernels: tuple[KernelModel, ...]
    compulsory_bytes: int
    helpers: dict[str, int]
    helper_count: int
    helper_flops: int
    helper_microseconds: float

    @property
    def helper_bytes(self) -> int:
        return sum(self.helpers.values())

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels)

    @property
    def device_bytes(self) -> int:
        """Of all kernels whose traffic is known; without the helpers."""
        return sum(kernel.launches * (kernel.device_bytes or 0) for kernel in self.kernels)

    @property
    def microseconds(self) -> float:
        """Lower bound of all launches and helpers, one after the other."""
        return sum(kernel.launches * kernel.microseconds for kernel in self.kernels) + self.helper_microseconds


def model_pass(name: str, captured: Captured, compulsory_bytes: int, gpu: GPU) -> PassModel:
    """Model what one pass launched; launches that are alike become one row."""
    groups: dict[tuple, list[Launch]] = {}
    for launch in captured.launches:
        key = (launch.kernel.hash, launch.grid, *launch.scalars.items(), *launch.tensors.items())
        groups.setdefault(key, []).append(launch)
    helpers = Counter()
    for helper in captured.helpers:
        helpers[helper.name] += helper.bytes
    return PassModel(
        name=name,
        kernels=tuple(_model_kernel(group, gpu) for group in groups.values()),
        compulsory_bytes=compulsory_bytes,
        helpers=dict(helpers.most_common()),
        helper_count=len(captured.helpers),
        helper_flops=sum(helper.flops for helper in captured.helpers),
        helper_microseconds=sum(helper_microseconds(helper, gpu) for helper in captured.helpers),
    )


def memory_microseconds(num_bytes: int, gpu: GPU) -> float:
    return num_bytes / (gpu.bandwidth_gb * 1e3)


def product_microseconds(flops: dict[str, int], num_programs: int, gpu: GPU) -> float:
    """At the peak of the multiprocessors that have a program."""
    rates = {"half": gpu.half_rate, "tf32": gpu.tf32_rate, "float": gpu.float_rate}
    return _busy_microseconds(sum(count / rates[kind] for kind, count in flops.items()), num_programs, gpu)


def loop_microseconds(facts: KernelFacts, flops: dict[str, int], num_programs: int, gpu: GPU) -> float:
    """All products of the launch at the pace of the hot loop's busiest pipe; 0 where its FLOP are not known."""
    if facts.hot is None or not facts.hot.flops:
        return 0.0
    on_matrix_units = {"half", "tf32"} | ({"float"} if "MFMA.f32" in facts.hot.products else set())
    passes = sum(count for kind, count in flops.items() if kind in on_matrix_units) / facts.hot.flops
    return _busy_microseconds(passes * facts.hot.clocks[facts.hot.busiest], num_programs, gpu)


def helper_microseconds(helper: HelperOp, gpu: GPU) -> float:
    """The larger of its memory time and, for a product, its arithmetic time; float32 products are not tf32."""
    rate = gpu.half_rate if helper.dtype in HALF else gpu.float_rate
    arithmetic = helper.flops / (gpu.peak_tflops(rate) * 1e6)
    return max(memory_microseconds(helper.bytes, gpu), arithmetic)


def _model_kernel(group: list[Launch], gpu: GPU) -> KernelModel:
    launch = group[0]
    facts = read_kernel(launch.kernel, launch.log, gpu)
    traffic, unknown = launch_traffic(launch)
    bounds, device_bytes = {}, None
    if traffic is not None:
        device_bytes = traffic.device_bytes(launch.tensors)
        bounds["memory"] = memory_microseconds(device_bytes, gpu)
        bounds["products"] = product_microseconds(traffic.flops, launch.num_programs, gpu)
        if facts.hot is not None:
            bounds[facts.hot.busiest] = loop_microseconds(facts, traffic.flops, launch.num_programs, gpu)
    return KernelModel(
        name=launch.name,
        launches=len(group),
        grid=launch.grid,
        facts=facts,
        occupancy=occupancy(
            gpu,
            registers=facts.registers,
            shared=facts.shared,
            num_warps=facts.num_warps,
            tensor_columns=facts.tensor_columns,
        ),
        traffic=traffic,
        unknown=unknown,
        device_bytes=device_bytes,
        bounds=bounds,
    )


def launch_traffic(launch: Launch) -> tuple[Traffic | None, str]:
    """(what a launch asks for, "") or (None, why that is not known)."""
    try:
        return count_traffic(parse_function(launch.kernel.asm["ttir"]), launch.scalars, launch.grid), ""
    except UnknownTraffic as reason:
        return None, str(reason)


def _busy_microseconds(clocks: float, num_programs: int, gpu: GPU) -> float:
    """`clocks` of one multiprocessor, shared by all that have a program."""
    return clocks / min(gpu.num_multiprocessors, num_programs) / (gpu.clock_ghz * 1e3)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
