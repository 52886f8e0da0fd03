"""What the kernels of causal_attention share: reading tiles, what is visible, scores, and the shapes of tiles."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
MAX_STRIDE = 1 << 23  # elements between rows up to which the offsets inside a tile are below 2^31


class Scores(NamedTuple):
    """How a product of a query and a key becomes a score in base 2: x * factor, or ceiling * tanh(x * factor)."""

    factor: float
    ceiling: float
    HAS_SOFTCAP: bool


def scores_of(scale: float, softcap: float | None) -> Scores:
    if softcap is None:
        return Scores(scale * LOG2_E.value, 0.0, False)
    return Scores(scale / softcap, softcap * LOG2_E.value, True)


def padded(width: int) -> int:
    """Size of a tile's axis that holds `width`: matrix units multiply at least 16."""
    return max(16, triton.next_power_of_2(width))


def with_unit_stride(x: Tensor) -> Tensor:
    """Kernels take any strides but that of the last axis; a copy where they cannot."""
    return x if x.stride(-1) == 1 and x.stride(1) < MAX_STRIDE else x.contiguous()


def bounds_of(starts: Tensor | None, cu_seqlens: Tensor | None, t: int, s: int) -> tuple[Tensor | None, Tensor | None]:
    """(b, t) first key that each query may see, (b, s) the position from which queries see a key no more; int32.

    Both are None if only causality and the window bound what is seen. A packed row has a bound for each token,
    so the kernels need not know where sequences begin, and the host need not look.
    """
    if cu_seqlens is not None:
        position = torch.arange(s, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
        after = torch.searchsorted(cu_seqlens, position, right=True)
        return cu_seqlens[after - 1].int()[None], cu_seqlens[after].int()[None]
    if starts is not None:
        key = torch.arange(s, device=starts.device)
        ends = torch.where(key >= starts[:, None], s, 0)
        return starts.int()[:, None].expand(-1, t).contiguous(), ends.int()
    return None, None


@triton.jit
def load_rows(ptr, stride, row, limit, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BOUND: tl.constexpr):
    """Rows row..row + ROWS as (ROWS, BLOCK_D), zero beyond D and, if BOUND, from `limit` on."""
    rows = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = ptr + tl.cast(row, tl.int64) * stride + rows[:, None] * stride + offs_d[None, :]
    if BOUND and BLOCK_D > D:
        return tl.load(ptrs, mask=(row + rows < limit)[:, None] & (offs_d < D)[None, :], other=0.0)
    if BOUND:
        return tl.load(ptrs, mask=(row + rows < limit)[:, None], other=0.0)
    if BLOCK_D > D:
        return tl.load(ptrs, mask=(offs_d < D)[None, :], other=0.0)
    return tl.load(ptrs)


@triton.jit
def load_numbers(ptr, row, limit, ROWS: tl.constexpr, OTHER: tl.constexpr, BOUND: tl.constexpr):
    """One number for each of the rows row..row + ROWS, OTHER from `limit` on if BOUND."""
    rows = row + tl.arange(0, ROWS)
    if BOUND:
        return tl.load(ptr + rows, mask=rows < limit, other=OTHER)
    return tl.load(ptr + rows)


@triton.jit
def store_rows(ptr, stride, row, limit, x, D: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write (ROWS, BLOCK_D) to rows row..min(row + ROWS, limit)."""
    rows = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = ptr + tl.cast(row, tl.int64) * stride + rows[:, None] * stride + offs_d[None, :]
    tl.store(ptrs, x.to(ptr.dtype.element_ty), mask=(row + rows < limit)[:, None] & (offs_d < D)[None, :])


@triton.jit
def tanh(x):
    """Accurate to float32 everywhere: near 0 by its series, where 1 - exp(-2x) would cancel."""
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    e = tl.exp2(-2.8853900817779268 * tl.abs(x))  # exp(-2 |x|)
    far = (1 - e) / (1 + e)
    return tl.where(square < 0.04, series, tl.where(x < 0, -far, far))


@triton.jit
def is_visible(key, position, window, HAS_WINDOW: tl.constexpr):
    visible = key <= position
    if HAS_WINDOW:
        visible &= key > position - window
    return visible


@triton.jit
def rows_of_program(T, H, BLOCK_M: tl.constexpr):
    """(first row, batch * H + head, batch, head) of a program that owns BLOCK_M queries of one head."""
    blocks = tl.cdiv(T, BLOCK_M)
    pid = tl.program_id(0)
    row = (blocks - 1 - pid % blocks) * BLOCK_M  # the longest walks first: short ones fill the end of the launch
    sequence_head = (pid // blocks).to(tl.int64)
    return row, sequence_head, sequence_head // H, sequence_head % H


@triton.jit
def keys_of_rows(first, row, T, S, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """(low, full, diagonal, high): some of the rows see the keys low..high, all of them see full..diagonal.

    low, full and diagonal are multiples of BLOCK_N. `first` is the first key that each row may see, or None.
    """
    own = row + (S - T)  # position of the first query
    last = tl.minimum(row + BLOCK_M, T) - 1 + (S - T)
    low = 0
    low_for_all = 0
    if HAS_WINDOW:
        low = tl.maximum(own - window + 1, 0)
        low_for_all = tl.maximum(last - window + 1, 0)
    if first is not None:
        exists = row + tl.arange(0, BLOCK_M) < T
        low = tl.maximum(low, tl.min(tl.where(exists, first, S), 0))
        low_for_all = tl.maximum(low_for_all, tl.max(tl.where(exists, first, 0), 0))
    diagonal = (own + 1) // BLOCK_N * BLOCK_N
    low = tl.minimum(low // BLOCK_N * BLOCK_N, diagonal)
    full = tl.minimum((low_for_all + BLOCK_N - 1) // BLOCK_N * BLOCK_N, diagonal)
    return low, full, diagonal, last + 1


@triton.jit
def num_tiles(low, full, beyond, high, BLOCK: tl.constexpr, RAGGED: tl.constexpr):
    """Of low..high, those that need a mask (low..full and beyond..high) or the others (full..beyond)."""
    if RAGGED:
        return (full - low) // BLOCK + tl.maximum(high - beyond + BLOCK - 1, 0) // BLOCK
    return (beyond - full) // BLOCK


@triton.jit
def tile(i, low, full, beyond, BLOCK: tl.constexpr, RAGGED: tl.constexpr):
    """Where the i-th of `num_tiles` begins."""
    if RAGGED:
        start = low + i * BLOCK
        return tl.where(start < full, start, start - full + beyond)
    return full + i * BLOCK
