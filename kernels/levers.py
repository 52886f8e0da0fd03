"""Two switches of the whole process that make a CPU faster: asked for, probed, recorded, and turned back afterwards.

Nothing here runs on import: `cpu_levers()` is an explicit call, because both switches change what other code in the
process sees.
"""

import ctypes
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ._dispatch import BackendError

MAX_RELATIVE_ERROR = 2e-6  # float32 products measured up to 6e-7; bfloat16 ones are at 2e-3
MIN_SPEED_UP = 1.1  # small products lose a little by the other route, so a tie is no reason to switch
PROBE_SHAPE = (256, 4096, 256)
PROBE_ROUNDS = 4
PROBE_BYTES = 40 << 20  # larger than any block that glibc keeps by default
PROBE_SLACK = 1 << 20  # an aligned request does not fit the hole that an equal one left

# mallopt(3). A request above the first is mapped from the kernel anew and its pages are cleared; free memory above
# the second at the end of the heap goes back to the kernel.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_MMAP_THRESHOLD, KEEP_TRIM_THRESHOLD = 1 << 30, (1 << 31) - 1
# The upper ends that mallopt(3) documents for the thresholds that glibc moves by itself. A process that has freed one
# large tensor stands there; the initial 128 KiB would, once set, stay and map every tensor above it.
DEFAULT_MMAP_THRESHOLD, DEFAULT_TRIM_THRESHOLD = 32 << 20, 64 << 20

_allocator_users = 0  # glibc does not tell its thresholds, so nested uses are counted here


@dataclass(frozen=True)
class Lever:
    """One switch: whether it is on, and the measurement or the reason behind that."""

    on: bool
    why: str


@dataclass(frozen=True)
class Levers:
    """What `cpu_levers` switched on."""

    matmul: Lever
    allocator: Lever


@contextmanager
def cpu_levers(*, matmul: bool = True, allocator: bool = True) -> Iterator[Levers]:
    """Switch on, for this process and this block, what makes float32 on a CPU faster; yield what was switched on.

    matmul: float32 products go through oneDNN instead of the BLAS that PyTorch was built with. On x86 processors
        without AMX oneDNN computes them in full float32 with AVX-512, where MKL on AMD stops at AVX2. Only where the
        processor has no AMX (there the same switch really computes in bfloat16), where a 256 x 4096 x 256 product
        has a relative error below 2e-6 against float64, and where it was measured faster. Backward passes belong
        inside the block too. Products of few rows are slower with it: decode under `matmul_lever(False)`.
    allocator: glibc keeps freed memory instead of returning it, so a large tensor is not cleared by the kernel
        each time it is made. The process holds on to its largest use until the block ends.

    Leaving the block restores the matmul route exactly, sets glibc's thresholds to the upper ends that it documents
    (32 MiB and 64 MiB) and returns the kept memory. One thing cannot be restored: once set, the thresholds no longer
    move by themselves.

    Args:
        matmul: False leaves the products alone.
        allocator: False leaves the allocator alone.
    """
    levers = Levers(
        probe_matmul(torch.get_num_threads()) if matmul else Lever(False, "not asked for"),
        probe_allocator() if allocator else Lever(False, "not asked for"),
    )
    with ExitStack() as stack:
        if levers.matmul.on:
            stack.enter_context(matmul_lever(True))
        if levers.allocator.on:
            stack.enter_context(_kept_memory())
        yield levers


def probe_levers() -> Levers:
    """What `cpu_levers` would switch on in this process, and why; both stand as before afterwards."""
    return Levers(probe_matmul(torch.get_num_threads()), probe_allocator())


@contextmanager
def matmul_lever(on: bool) -> Iterator[None]:
    """Route float32 products through oneDNN (True) or PyTorch's default BLAS (False) within this block.

    Raises:
        BackendError: on=True where the probe refused it.
    """
    if on:
        probe = probe_matmul(torch.get_num_threads())
        if not probe.on:
            raise BackendError(f"matmul_lever: cannot be switched on here: {probe.why}; use matmul_lever(False)")
    with _matmul_route("bf16" if on else "none"):
        yield


@cache
def probe_matmul(num_threads: int) -> Lever:
    """Whether the oneDNN route may be used: right processor, float32 accuracy, and faster with so many threads."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return Lever(False, f"needs an x86-64 processor, this is {platform.machine()}")
    if not torch.backends.mkldnn.is_available():
        return Lever(False, "needs a PyTorch that was built with oneDNN")
    flags = cpu_flags()
    if not flags:
        return Lever(False, "cannot read the processor's flags from /proc/cpuinfo, so AMX is not excluded")
    if amx := sorted(flag for flag in flags if flag.startswith("amx")):
        return Lever(False, f"the processor has {', '.join(amx)}: oneDNN would compute in bfloat16")
    a, b = _probe_operands()
    error = relative_error(a, b)
    if not error < MAX_RELATIVE_ERROR:
        return Lever(False, f"relative error {error:.1e} against float64, allowed is {MAX_RELATIVE_ERROR:.0e}")
    speed_up = measure_speed_up(a, b)
    faster = speed_up > MIN_SPEED_UP
    why = f"{speed_up:.2f} times the default's speed with {num_threads} threads, relative error {error:.1e}"
    return Lever(faster, why if faster else f"{why}: not worth it below {MIN_SPEED_UP}")


@cache
def probe_allocator() -> Lever:
    """Whether glibc's thresholds can be moved and then spare the page faults of a fresh large tensor."""
    library, version = platform.libc_ver()
    if library != "glibc":
        return Lever(False, f"needs glibc, this is {library or platform.system()}")
    before = count_page_faults(PROBE_BYTES)
    with _kept_memory():
        after = count_page_faults(PROBE_BYTES)
    spared = after < before / 2 or after == 0  # before is 0 too where the heap already has a hole of that size
    return Lever(spared, f"glibc {version}, page faults of a fresh {PROBE_BYTES >> 20} MiB tensor: {before} -> {after}")


def cpu_flags() -> set[str]:
    """The processor's feature flags as Linux lists them; empty where there is no such list."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return set()
    lines = (line for line in cpuinfo.read_text().splitlines() if line.startswith("flags"))
    return set(next(lines, ":").partition(":")[2].split())


def relative_error(a: Tensor, b: Tensor) -> float:
    """Frobenius error of the float32 product by the oneDNN route, against float64."""
    exact = a.double() @ b.double()
    with _matmul_route("bf16"):
        routed = a @ b
    return ((routed.double() - exact).norm() / exact.norm()).item()


def measure_speed_up(a: Tensor, b: Tensor) -> float:
    """Time of the product by the default route over its time by oneDNN, each the best of interleaved rounds."""
    best = {}
    for _ in range(PROBE_ROUNDS):
        for route in ("none", "bf16"):
            with _matmul_route(route):
                start = time.perf_counter()
                a @ b
                seconds = time.perf_counter() - start
            best[route] = min(seconds, best.get(route, seconds))
    return best["none"] / best["bf16"]


def count_page_faults(num_bytes: int) -> int:
    """Pages that the kernel hands over for a tensor of this size right after a slightly larger one was freed.

    The fewest of some rounds: the first may fall into a hole whose pages an earlier trim has returned.
    """
    import resource  # Unix only, as this measurement is

    faults = []
    for _ in range(PROBE_ROUNDS):
        torch.ones(num_bytes + PROBE_SLACK, dtype=torch.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(num_bytes, dtype=torch.uint8)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        if faults[-1] == 0:
            break
    return min(faults)


def _probe_operands() -> tuple[Tensor, Tensor]:
    """Two fixed matrices that leave the user's random stream alone."""
    m, k, n = PROBE_SHAPE
    generator = torch.Generator().manual_seed(0)
    return torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)


@contextmanager
def _matmul_route(precision: str) -> Iterator[None]:
    """Set oneDNN's precision for float32 products: "bf16" makes it take them over, "none" is PyTorch's default."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before


@contextmanager
def _kept_memory() -> Iterator[None]:
    """glibc keeps what is freed; the last of nested users returns it."""
    global _allocator_users
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, KEEP_MMAP_THRESHOLD)
    libc.mallopt(M_TRIM_THRESHOLD, KEEP_TRIM_THRESHOLD)
    _allocator_users += 1
    try:
        yield
    finally:
        _allocator_users -= 1
        if _allocator_users == 0:
            libc.mallopt(M_MMAP_THRESHOLD, DEFAULT_MMAP_THRESHOLD)
            libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_THRESHOLD)
            libc.malloc_trim(0)
