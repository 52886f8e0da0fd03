"""What the kernels share: sums of log_decay, dot products, and the sizes of tiles."""

import torch
import triton
import triton.language as tl

from ..._target import knows_tf32

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
def dot(a, b):
    """a @ b in a's dtype, accumulated in float32. Three products in tf32 would do for float32, but spill registers."""
    return tl.dot(a, b.to(a.dtype), input_precision="ieee")


@triton.jit
def read_memory(q, memory, PRECISION: tl.constexpr):
    """q @ memory. A memory may outgrow float16, whose 10 bits of mantissa tf32 has too."""
    if q.dtype == tl.float16:
        return tl.dot(q.to(tl.float32), memory, input_precision=PRECISION)
    return dot(q, memory)


def power_of_two(n: int) -> int:
    return max(16, triton.next_power_of_2(n))


def precision() -> str:
    """Of the products of `read_memory` that are made in float32 for float16."""
    return "tf32" if knows_tf32() else "ieee"


# What keeps a program's tiles in registers. Without tensor cores, as in float32, a product takes more of them.


def chunk_size(t: int, width: int, dtype: torch.dtype, by_channel: bool) -> int:
    """Tokens of a chunk, given the wider of the two head dims."""
    if dtype == torch.float32:
        longest = 32 if width <= 64 else 16
    else:
        longest = (32 if by_channel else 64) // (2 if width > 128 else 1)
    return min(longest, power_of_two(t))


def block_width(key: int, value: int, dtype: torch.dtype, decay: str) -> int:
    """Columns of the memory that one program owns; factors of a decay need registers too."""
    if dtype == torch.float32:
        return 16
    return min(power_of_two(value), 64 if decay == "none" and 64 < key <= 128 else 32)


def walk_warps(key: int, dtype: torch.dtype) -> int:
    return 8 if key > (64 if dtype == torch.float32 else 128) else 4
