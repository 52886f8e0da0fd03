"""What the kernels share: sums of log_decay, dot products, and the sizes of tiles."""

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
FADED = tl.constexpr(-256.0)  # exp of it is zero in float32
GRID = tl.constexpr(256.0)  # multiples of 1 / GRID down to 64 * FADED / ln 2 add up exactly in float32


@triton.jit
def coarse_and_fine(log_decay):
    """Split into multiples of 1 / GRID, whose sums are exact, and small rests; both in log2."""
    gate = tl.maximum(log_decay.to(tl.float32), FADED) * LOG2_E
    coarse = tl.floor(gate * GRID + 0.5) / GRID
    return coarse, gate - coarse


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a @ b in a's dtype, accumulated in float32."""
    return tl.dot(a, b.to(a.dtype), input_precision=PRECISION)


@triton.jit
def read_memory(q, memory, PRECISION: tl.constexpr):
    """q @ memory. A memory may outgrow float16, whose 10 bits of mantissa tf32 has too."""
    if q.dtype == tl.float16:
        return tl.dot(q.to(tl.float32), memory, input_precision="tf32")
    return dot(q, memory, PRECISION)


def power_of_two(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


def precision() -> str:
    """Of float32 products: three on tensor cores make one where these know tf32; half precision ignores it."""
    return "tf32x3" if torch.version.hip is None else "ieee"


def chunk_size(t: int, width: int, dtype: torch.dtype, by_channel: bool) -> int:
    """Tokens of a chunk, given the wider of the two head dims: what keeps a program's tiles in registers."""
    longest = 32 if by_channel or dtype == torch.float32 else 64
    return min(longest // 2 if width > 128 else longest, power_of_two(t))
