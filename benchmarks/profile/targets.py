"""The GPUs that the model knows, with the numbers of their makers' data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """What a data sheet promises of one GPU.

    A multiprocessor (on AMD a compute unit) has four parts, each with a scheduler and a quarter of the registers.
    FLOP counts are of dense products, a multiply and an add being two. Rates are per clock and multiprocessor.

    Args:
        name: product.
        compiled_for: what Triton calls it, a key of `_without_device.TARGETS`.
        num_multiprocessors: of the whole GPU.
        clock_ghz: boost clock at which `half_rate` gives the data sheet's peak.
        half_rate: FLOP of the matrix units on float16 or bfloat16.
        tf32_rate: FLOP of the matrix units on tf32, 0 without.
        float_rate: FLOP of the ordinary units on float32.
        special_rate: exponentials and other special functions.
        integer_rate: integer additions, comparisons and logic.
        warp_mma_share: share of `half_rate` that products issued by single warps (mma.sync) reach.
        bandwidth_gb: device memory, GB/s (1e9 bytes).
        cache_mb: last cache that all multiprocessors share, MB (1e6 bytes).
        warp_size: threads of a warp (AMD: of a wavefront).
        max_warps, max_blocks: resident on a multiprocessor.
        registers: of 32 bits that each part has for one lane; warps that are resident share them.
        register_unit: registers of a thread are allocated in multiples of this.
        shared_bytes: shared memory of a multiprocessor.
        shared_reserve: bytes of it that the system takes for each block.
        shared_unit: shared memory is allocated in multiples of this many bytes.
        block_shared_bytes: most that one block may use.
        source: where the numbers come from.
    """

    name: str
    compiled_for: str
    num_multiprocessors: int
    clock_ghz: float
    half_rate: int
    tf32_rate: int
    float_rate: int
    special_rate: int
    integer_rate: int
    warp_mma_share: float
    bandwidth_gb: float
    cache_mb: float
    warp_size: int
    max_warps: int
    max_blocks: int
    registers: int
    register_unit: int
    shared_bytes: int
    shared_reserve: int
    shared_unit: int
    block_shared_bytes: int
    source: str

    def peak_tflops(self, rate: float) -> float:
        """10^12 FLOP/s of the whole GPU at `rate` FLOP per clock and multiprocessor."""
        return rate * self.num_multiprocessors * self.clock_ghz / 1e3


CUDA_GUIDE = "CUDA C++ Programming Guide, tables of arithmetic throughput and of technical specifications"
KIB = 1024
_NVIDIA = dict(
    special_rate=16,
    integer_rate=64,
    warp_size=32,
    registers=512,
    register_unit=8,
    shared_reserve=KIB,
    shared_unit=128,
)
_NVIDIA_LARGE = dict(max_warps=64, max_blocks=32, **_NVIDIA)  # fmt: skip

GPUS = {
    "a100": GPU(
        name="A100 SXM4 80 GB", compiled_for="cuda:80", num_multiprocessors=108, clock_ghz=1.41,
        half_rate=2048, tf32_rate=1024, float_rate=128, warp_mma_share=1.0, bandwidth_gb=2039, cache_mb=40,
        shared_bytes=164 * KIB, block_shared_bytes=163 * KIB,
        source=f"NVIDIA A100 data sheet (312 TFLOPS, 2039 GB/s); {CUDA_GUIDE}, 8.0", **_NVIDIA_LARGE,
    ),
    "h100": GPU(
        name="H100 SXM5 80 GB", compiled_for="cuda:90", num_multiprocessors=132, clock_ghz=1.83,
        half_rate=4096, tf32_rate=2048, float_rate=256, warp_mma_share=0.63, bandwidth_gb=3350, cache_mb=50,
        shared_bytes=228 * KIB, block_shared_bytes=227 * KIB,
        source=f"NVIDIA H100 data sheet (989 TFLOPS, 3.35 TB/s); {CUDA_GUIDE}, 9.0; mma.sync: arXiv 2402.13499",
        **_NVIDIA_LARGE,
    ),
    "b200": GPU(
        name="B200 (HGX, 1000 W)", compiled_for="cuda:100", num_multiprocessors=148, clock_ghz=1.856,
        half_rate=8192, tf32_rate=4096, float_rate=256, warp_mma_share=1.0, bandwidth_gb=8000, cache_mb=126,
        shared_bytes=228 * KIB, block_shared_bytes=227 * KIB,
        source=f"NVIDIA HGX B200 data sheet (2250 TFLOPS, 8 TB/s); {CUDA_GUIDE}, 10.0; mma.sync: as if at full rate",
        **_NVIDIA_LARGE,
    ),
    "l40s": GPU(  # of the GPUs whose blocks have least shared memory
        name="L40S", compiled_for="cuda:89", num_multiprocessors=142, clock_ghz=2.52,
        half_rate=1024, tf32_rate=512, float_rate=256, warp_mma_share=1.0, bandwidth_gb=864, cache_mb=96,
        max_warps=48, max_blocks=24, shared_bytes=100 * KIB, block_shared_bytes=99 * KIB,
        source=f"NVIDIA L40S data sheet (362 TFLOPS, 864 GB/s); {CUDA_GUIDE}, 8.9", **_NVIDIA,
    ),
    "mi300": GPU(
        name="MI300X", compiled_for="gfx942", num_multiprocessors=304, clock_ghz=2.1,
        half_rate=2048, tf32_rate=1024, float_rate=256, special_rate=16, integer_rate=64, warp_mma_share=1.0,
        bandwidth_gb=5300, cache_mb=256, warp_size=64, max_warps=32, max_blocks=32, registers=512, register_unit=8,
        shared_bytes=64 * KIB, shared_reserve=0, shared_unit=512, block_shared_bytes=64 * KIB,
        source="AMD Instinct MI300X data sheet (1307 TFLOPS, 5.3 TB/s); AMD CDNA 3 white paper",
    ),
}  # fmt: skip


def find_gpu(name: str) -> GPU:
    """The GPU of this name.

    Raises:
        ValueError: it is not one of GPUS.
    """
    if name not in GPUS:
        raise ValueError(f"profile: unknown target {name!r}; expected one of {', '.join(GPUS)}")
    return GPUS[name]
