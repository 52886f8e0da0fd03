"""A few queries against a long cache: programs share the keys of a head among them, a second kernel merges.

Without the split a batch of one would keep only as many multiprocessors busy as there are key heads. All query heads
that read a key head stand in one tile, so the cache is read once.
"""

import triton
import triton.language as tl
from torch import Tensor

from ... import _target
from ..._configs import Config
from ._tiles import LOG2_E, Scores, padded
from .forward import attend

MAX_ROWS = 64  # queries times query heads of a key head in one tile
MIN_CONTEXT = 8  # keys for each query from which splitting them pays
TILE_BYTES = 1 << 14  # of a tile of keys: two of keys and two of values are on chip at a time
MIN_TILES = 2  # of keys in a part: less is not worth a program
PROGRAMS_PER_MULTIPROCESSOR = 2


def is_decoding(t: int, s: int, group: int) -> bool:
    return group * t <= MAX_ROWS and MIN_CONTEXT * t <= s


@triton.jit(do_not_specialize=["S", "low", "num_splits"])  # they change with every step or few
def causal_attention_decode_fwd_kernel(
    q_ptr, k_ptr, v_ptr, first_ptr, part_ptr, part_lse_ptr, q_strides, k_strides, v_strides,
    T, S, G, low, keys_per_split, num_splits, window, factor, ceiling, GROUP: tl.constexpr, K: tl.constexpr,
    V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """All queries of one key head (row = query head * T + query) over one part of the keys."""
    split = tl.program_id(0) % num_splits
    sequence_head = tl.program_id(0) // num_splits
    batch, key_head = (sequence_head // G).to(tl.int64), (sequence_head % G).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    query, head = rows % T, key_head * GROUP + rows // T
    exists = rows < GROUP * T

    offs_k, offs_v = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    q_rows = q_ptr + batch * q_strides[0] + query * q_strides[1] + head * q_strides[2]
    q = tl.load(q_rows[:, None] + offs_k[None, :], mask=exists[:, None] & (offs_k < K)[None, :], other=0.0)
    first = None
    if first_ptr is not None:
        first = tl.load(first_ptr + batch * T + query)

    start = low + split * keys_per_split
    acc, weight_sum, largest = attend(
        tl.zeros((BLOCK_M, BLOCK_V), tl.float32), tl.zeros((BLOCK_M,), tl.float32),
        tl.full((BLOCK_M,), float("-inf"), tl.float32), q,
        k_ptr + batch * k_strides[0] + key_head * k_strides[2], v_ptr + batch * v_strides[0] + key_head * v_strides[2],
        k_strides[1], v_strides[1], start, tl.minimum(start + keys_per_split, S), query + (S - T), first, S, window,
        factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_N, HAS_WINDOW, HAS_SOFTCAP, True,
    )  # fmt: skip

    saw_something = weight_sum > 0
    weight_sum = tl.where(saw_something, weight_sum, 1.0)
    part = ((batch * G * GROUP + head) * T + query) * num_splits + split
    tl.store(part_lse_ptr + part, tl.where(saw_something, largest + tl.log2(weight_sum), float("-inf")), mask=exists)
    part_rows = part_ptr + part * V
    tl.store(
        part_rows[:, None] + offs_v[None, :], acc / weight_sum[:, None], mask=exists[:, None] & (offs_v < V)[None, :]
    )


@triton.jit(do_not_specialize=["num_splits"])
def causal_attention_decode_merge_kernel(
    part_ptr, part_lse_ptr, sinks_ptr, y_ptr, lse_ptr, y_strides, T, H, num_splits,
    V: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One query of one head: the parts' averages, weighted by the sums of their weights."""
    row = tl.program_id(0).to(tl.int64)  # (batch * H + head) * T + query
    query, head, batch = row % T, row // T % H, row // T // H
    splits, offs_v = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_V)
    part_lse = tl.load(part_lse_ptr + row * num_splits + splits, mask=splits < num_splits, other=float("-inf"))
    largest = tl.max(part_lse, 0)
    sink = float("-inf")
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E
        largest = tl.maximum(largest, sink)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    weights = tl.exp2(part_lse - shift)
    weight_sum = tl.sum(weights, 0) + tl.exp2(sink - shift)
    parts = tl.load(
        part_ptr + (row * num_splits + splits)[:, None] * V + offs_v[None, :],
        mask=(splits < num_splits)[:, None] & (offs_v < V)[None, :], other=0.0,
    )  # fmt: skip
    saw_something = weight_sum > 0
    divisor = tl.where(saw_something, weight_sum, 1.0)
    y = tl.sum(weights[:, None] * parts, 0) / divisor
    y_row = y_ptr + batch * y_strides[0] + query * y_strides[1] + head * y_strides[2]
    tl.store(y_row + offs_v, y.to(y_ptr.dtype.element_ty), mask=offs_v < V)
    tl.store(lse_ptr + row, tl.where(saw_something, shift + tl.log2(divisor), float("inf")))


def run_decode(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, first: Tensor | None, y: Tensor, lse: Tensor,
    window: int | None, scores: Scores,
) -> None:  # fmt: skip
    """What `run_forward` does, for few queries."""
    (b, t, h, k_dim), (s, g, v_dim) = q.shape, v.shape[1:]
    tiles = decode_tiles(q, k, v)
    low = 0 if window is None else max(0, s - t - window + 1) // tiles["BLOCK_N"] * tiles["BLOCK_N"]
    splits = _splits_that_fill(b * g, triton.cdiv(s - low, MIN_TILES * tiles["BLOCK_N"]))
    keys_per_split = triton.cdiv(triton.cdiv(s - low, splits), tiles["BLOCK_N"]) * tiles["BLOCK_N"]
    splits = triton.cdiv(s - low, keys_per_split)
    parts = lse.new_empty(b, h, t, splits, v_dim)
    part_lse = lse.new_empty(b, h, t, splits)
    causal_attention_decode_fwd_kernel[(splits * b * g,)](
        q, k, v, first, parts, part_lse, q.stride()[:3], k.stride()[:3], v.stride()[:3],
        t, s, g, low, keys_per_split, splits, s if window is None else window, scores.factor, scores.ceiling,
        h // g, k_dim, v_dim, BLOCK_K=padded(k_dim), BLOCK_V=padded(v_dim), **tiles,
        HAS_WINDOW=window is not None, HAS_SOFTCAP=scores.HAS_SOFTCAP,
    )  # fmt: skip
    causal_attention_decode_merge_kernel[(b * h * t,)](
        parts, part_lse, sinks, y, lse, y.stride()[:3], t, h, splits, v_dim,
        triton.next_power_of_2(splits), padded(v_dim),
    )  # fmt: skip


def decode_tiles(q: Tensor, k: Tensor, v: Tensor) -> Config:
    row_bytes = max(padded(k.shape[3]), padded(v.shape[3])) * k.element_size()
    rows = padded(q.shape[2] // k.shape[2] * q.shape[1])
    return dict(BLOCK_M=rows, BLOCK_N=min(64, TILE_BYTES // row_bytes), num_warps=4, num_stages=2)


def _splits_that_fill(num_heads: int, most: int) -> int:
    """Parts of the keys, at most so many, that give every multiprocessor work."""
    return min(triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * _target.multiprocessors(), num_heads), most)
