"""The roof over what a GPU can do, for the GPU at hand: its bandwidth and its arithmetic rates, as far as known."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .targets import GPU, GPUS

A100, H100, B200, L40S, MI300 = (GPUS[name] for name in ("a100", "h100", "b200", "l40s", "mi300"))

# By the beginning of the name that PyTorch gives a device; the longest that fits is meant.
DEVICES = {
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA A100-SXM4-40GB": replace(A100, name="A100 SXM4 40 GB", bandwidth_gb=1555),
    "NVIDIA A100 80GB PCIe": replace(A100, name="A100 PCIe 80 GB", bandwidth_gb=1935),
    "NVIDIA A100-PCIE-40GB": replace(A100, name="A100 PCIe 40 GB", bandwidth_gb=1555),
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H100 PCIe": replace(
        H100, name="H100 PCIe 80 GB", num_multiprocessors=114, clock_ghz=1.62, bandwidth_gb=2039,
        source="NVIDIA H100 data sheet, PCIe (756 TFLOPS, 2 TB/s)",
    ),
    "NVIDIA H100 NVL": replace(
        H100, name="H100 NVL 94 GB", clock_ghz=1.545, bandwidth_gb=3938,
        source="NVIDIA H100 NVL data sheet (835 TFLOPS, 3.9 TB/s)",
    ),
    "NVIDIA H200": replace(H100, name="H200 SXM 141 GB", bandwidth_gb=4800,
                           source="NVIDIA H200 data sheet (989 TFLOPS, 4.8 TB/s)"),
    "NVIDIA B200": B200,
    "NVIDIA L40S": L40S,
    "AMD Instinct MI300X": MI300,
}  # fmt: skip
DATA_RATE = 2  # transfers of a memory's clock
RELATIVES = (A100, H100, B200, MI300)  # whose matrix units all GPUs of the architecture have; those of 8.9 differ
KINDS = {"half": "float16 and bfloat16", "tf32": "tf32", "float": "float32"}


@dataclass(frozen=True)
class Roof:
    """What a GPU can do at most.

    bandwidth_gb: GB/s of device memory, None if not known.
    tflops: 10^12 FLOP/s by what multiplies, "half", "tf32" or "float"; those that are not known are missing.
    source: where the numbers come from.
    """

    name: str
    bandwidth_gb: float | None
    tflops: Mapping[str, float]
    source: str

    def memory_microseconds(self, num_bytes: int | None) -> float | None:
        """At full bandwidth."""
        if num_bytes is None or self.bandwidth_gb is None:
            return None
        return num_bytes / (self.bandwidth_gb * 1e3)

    def arithmetic_microseconds(self, flops: Mapping[str, int] | None) -> float | None:
        """At the peak of each kind."""
        if flops is None or any(count and kind not in self.tflops for kind, count in flops.items()):
            return None
        return sum(count / (self.tflops[kind] * 1e6) for kind, count in flops.items() if count)


@dataclass(frozen=True)
class Rates:
    """What was achieved, and the share of what the GPU could; None where something is not known.

    bound: the roof that is nearer, "memory" or "arithmetic".
    """

    gb_per_second: float | None
    bandwidth_share: float | None
    tflops: float | None
    peak_share: float | None
    bound: str | None


def rates(microseconds: float | None, num_bytes: int | None, flops: Mapping[str, int] | None, roof: Roof) -> Rates:
    """Bytes and FLOP over the time that they took."""
    if not microseconds:
        return Rates(None, None, None, None, None)
    memory, arithmetic = roof.memory_microseconds(num_bytes), roof.arithmetic_microseconds(flops)
    bound = None
    if memory is not None and arithmetic is not None:
        bound = "memory" if memory >= arithmetic else "arithmetic"
    return Rates(
        gb_per_second=None if num_bytes is None else num_bytes / (microseconds * 1e3),
        bandwidth_share=None if memory is None else memory / microseconds,
        tflops=None if flops is None else sum(flops.values()) / (microseconds * 1e6),
        peak_share=None if arithmetic is None else arithmetic / microseconds,
        bound=bound,
    )


def roof_of(gpu: GPU, name: str = "") -> Roof:
    """The roof of a GPU whose data sheet is known; `name` is what it calls itself."""
    kinds = {"half": gpu.half_rate, "tf32": gpu.tf32_rate, "float": gpu.float_rate}
    peaks = {kind: gpu.peak_tflops(rate) for kind, rate in kinds.items() if rate}
    return Roof(name or gpu.name, gpu.bandwidth_gb, peaks, gpu.source)


def find_roof(properties) -> Roof:
    """The roof of a device from what PyTorch says of it.

    Args:
        properties: as torch.cuda.get_device_properties returns.
    """
    fitting = [name for name in DEVICES if properties.name.startswith(name)]
    if fitting:
        return roof_of(DEVICES[max(fitting, key=len)], properties.name)
    return _estimated(properties)


def _estimated(properties) -> Roof:
    """Of a GPU without a data sheet here: from its clocks; its matrix units are known if its architecture is."""
    clock = getattr(properties, "memory_clock_rate", 0)  # kHz
    width = getattr(properties, "memory_bus_width", 0)  # bits
    bandwidth = DATA_RATE * clock * 1e3 * width / 8 / 1e9 if clock and width else None
    ghz = getattr(properties, "clock_rate", 0) / 1e6
    relative = next((gpu for gpu in RELATIVES if gpu.compiled_for == _architecture(properties)), None)
    tflops, unknown = {}, []
    if relative is not None and ghz:
        own = replace(relative, num_multiprocessors=properties.multi_processor_count, clock_ghz=ghz)
        tflops = dict(roof_of(own).tflops)
    else:
        unknown.append("its arithmetic rates")
    if bandwidth is None:
        unknown.append("its bandwidth")
    source = "no data sheet is stored for this GPU"
    if bandwidth is not None:
        source += "; bandwidth from the memory's clock and width as its driver states them"
    if tflops:
        source += f"; arithmetic from its clock and multiprocessors at the rates of the {relative.name}"
    if unknown:
        source += f"; not known: {' and '.join(unknown)}"
    return Roof(properties.name, bandwidth, tflops, source)


def _architecture(properties) -> str:
    """As `targets.GPU.compiled_for` names it."""
    amd = getattr(properties, "gcnArchName", "")
    return amd.partition(":")[0] if amd.startswith("gfx") else f"cuda:{properties.major}{properties.minor}"
