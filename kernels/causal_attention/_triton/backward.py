"""The backward pass: delta = sum(dy * y) first, then one launch that computes the weights again, a block at a time.

Some of its programs walk a block of queries over the keys and give dq, the others a block of keys over the queries of
every head that reads them and give dk and dv; both kinds of a head run side by side and share what they read in the
cache. Each sum stays in one program, in one order: nothing is added atomically.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._configs import BACKWARD
from ._tiles import (
    LOG2_E,
    Scores,
    is_visible,
    keys_of_rows,
    load_numbers,
    load_rows,
    num_tiles,
    padded,
    store_rows,
    tanh,
    tile,
)

DELTA_ROWS = 64


@triton.jit
def _weights_and_slope(products, visible, lse, factor, ceiling, HAS_SOFTCAP: tl.constexpr):
    """exp2(score - lse), and what turns a gradient of the score into one of scale * q . k."""
    slope = 1.0
    score = products * factor
    if HAS_SOFTCAP:
        capped = tanh(score)
        slope = 1.0 - capped * capped
        score = ceiling * capped
    if visible is not None:
        score = tl.where(visible, score, float("-inf"))
    return tl.exp2(score - lse), slope


@triton.jit
def causal_attention_bwd_delta_kernel(
    y_ptr, lse_ptr, dy_ptr, sinks_ptr, delta_ptr, dsinks_ptr, y_strides, dy_strides, T, H,
    V: tl.constexpr, BLOCK: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """delta = sum(dy * y) of some queries of one head, and their part of the head's dsinks."""
    blocks = tl.cdiv(T, BLOCK)
    row = tl.program_id(0) % blocks * BLOCK
    sequence_head = (tl.program_id(0) // blocks).to(tl.int64)
    batch, head = sequence_head // H, sequence_head % H
    y_ptr += batch * y_strides[0] + head * y_strides[2]
    dy_ptr += batch * dy_strides[0] + head * dy_strides[2]
    rows = row + tl.arange(0, BLOCK)
    y = load_rows(y_ptr, y_strides[1], row, T, V, BLOCK, BLOCK_V, True)
    dy = load_rows(dy_ptr, dy_strides[1], row, T, V, BLOCK, BLOCK_V, True)
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(delta_ptr + sequence_head * T + rows, delta, mask=rows < T)
    if sinks_ptr is not None:
        lse = tl.load(lse_ptr + sequence_head * T + rows, mask=rows < T, other=float("inf"))
        sink = tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E
        tl.store(dsinks_ptr + tl.program_id(0), -tl.sum(tl.exp2(sink - lse) * delta, 0))


@triton.jit
def causal_attention_bwd_kernel(
    q_ptr, k_ptr, v_ptr, first_ptr, ends_ptr, lse_ptr, delta_ptr, dy_ptr, dq_ptr, dk_ptr, dv_ptr,
    q_strides, k_strides, v_strides, dy_strides,
    T, S, G, window, scale, factor, ceiling, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK keys of one key head, or dq of BLOCK queries of one of the query heads that read it.

    Programs of a key head are neighbours, so they find in the cache what others of them have read. Within it those
    with most work come first: first keys are seen by the most queries, last queries see the most keys.
    """
    blocks_of_keys, blocks_of_queries = tl.cdiv(S, BLOCK), tl.cdiv(T, BLOCK)
    programs = blocks_of_keys + GROUP * blocks_of_queries
    pid = tl.program_id(0) % programs
    sequence_head = tl.program_id(0) // programs
    batch, key_head = (sequence_head // G).to(tl.int64), (sequence_head % G).to(tl.int64)
    k_ptr += batch * k_strides[0] + key_head * k_strides[2]
    v_ptr += batch * v_strides[0] + key_head * v_strides[2]
    q_ptr += batch * q_strides[0] + key_head * GROUP * q_strides[2]
    dy_ptr += batch * dy_strides[0] + key_head * GROUP * dy_strides[2]
    first_head = (batch * G + key_head) * GROUP
    lse_ptr += first_head * T
    delta_ptr += first_head * T
    if pid < blocks_of_keys:
        own = batch * S * G + key_head
        if ends_ptr is not None:
            ends_ptr += batch * S
        _differentiate_keys(
            q_ptr, k_ptr, v_ptr, ends_ptr, lse_ptr, delta_ptr, dy_ptr, dk_ptr + own * K, dv_ptr + own * V,
            q_strides, k_strides[1], v_strides[1], dy_strides, G * K, G * V, pid * BLOCK, T, S, window, scale, factor,
            ceiling, GROUP, K, V, BLOCK, BLOCK_M, BLOCK_K, BLOCK_V, HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
    else:
        row = (blocks_of_queries - 1 - (pid - blocks_of_keys) // GROUP) * BLOCK
        head = (pid - blocks_of_keys) % GROUP
        if first_ptr is not None:
            first_ptr += batch * T
        _differentiate_queries(
            q_ptr + head * q_strides[2], k_ptr, v_ptr, first_ptr, lse_ptr + head * T, delta_ptr + head * T,
            dy_ptr + head * dy_strides[2], dq_ptr + (batch * T * G * GROUP + key_head * GROUP + head) * K,
            q_strides[1], k_strides[1], v_strides[1], dy_strides[1], G * GROUP * K, row,
            T, S, window, scale, factor, ceiling, K, V, BLOCK, BLOCK_N, BLOCK_K, BLOCK_V, HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip


@triton.jit
def _differentiate_queries(
    q_ptr, k_ptr, v_ptr, first_ptr, lse_ptr, delta_ptr, dy_ptr, dq_ptr, stride_q, stride_k, stride_v, stride_dy,
    stride_dq, row, T, S, window, scale, factor, ceiling, K: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """dq of the queries row..row + BLOCK_M of one head."""
    rows = row + tl.arange(0, BLOCK_M)
    position = rows + (S - T)
    first = None
    if first_ptr is not None:
        first = tl.load(first_ptr + rows, mask=rows < T, other=S)
    low, full, diagonal, high = keys_of_rows(first, row, T, S, window, BLOCK_M, BLOCK_N, HAS_WINDOW)
    q = load_rows(q_ptr, stride_q, row, T, K, BLOCK_M, BLOCK_K, True)
    dy = load_rows(dy_ptr, stride_dy, row, T, V, BLOCK_M, BLOCK_V, True)
    lse = tl.load(lse_ptr + rows, mask=rows < T, other=float("inf"))
    delta = tl.load(delta_ptr + rows, mask=rows < T, other=0.0)
    dq = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for MASK in tl.static_range(2):
        for i in range(num_tiles(low, full, diagonal, high, BLOCK_N, MASK)):
            n = tile(i, low, full, diagonal, BLOCK_N, MASK)
            k = load_rows(k_ptr, stride_k, n, S, K, BLOCK_N, BLOCK_K, MASK)
            v = load_rows(v_ptr, stride_v, n, S, V, BLOCK_N, BLOCK_V, MASK)
            products = tl.dot(q, tl.trans(k), input_precision="ieee")  # (BLOCK_M, BLOCK_N)
            dweights = tl.dot(dy, tl.trans(v), input_precision="ieee")
            visible = None
            if MASK:
                key = n + tl.arange(0, BLOCK_N)[None, :]
                visible = is_visible(key, position[:, None], window, HAS_WINDOW)
                if first is not None:
                    visible &= key >= first[:, None]
            weights, slope = _weights_and_slope(products, visible, lse[:, None], factor, ceiling, HAS_SOFTCAP)
            dproducts = weights * (dweights - delta[:, None]) * slope
            dq = tl.dot(dproducts.to(k.dtype), k, dq, input_precision="ieee")
    store_rows(dq_ptr, stride_dq, row, T, dq * scale, K, BLOCK_M, BLOCK_K)


@triton.jit
def _differentiate_keys(
    q_ptr, k_ptr, v_ptr, ends_ptr, lse_ptr, delta_ptr, dy_ptr, dk_ptr, dv_ptr,
    q_strides, stride_k, stride_v, dy_strides, stride_dk, stride_dv, row, T, S, window, scale, factor, ceiling,
    GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """dk and dv of the keys row..row + BLOCK_N of one key head, summed over the GROUP query heads that read it.

    Scores are transposed, (BLOCK_N, BLOCK_M): so the weights leave one product and enter the next in registers.
    """
    key = row + tl.arange(0, BLOCK_N)
    ends = None
    if ends_ptr is not None:
        ends = tl.load(ends_ptr + key, mask=key < S, other=0)
    low, full, beyond, high = _queries_of_keys(ends, row, T, S, window, BLOCK_M, BLOCK_N, HAS_WINDOW)
    k = load_rows(k_ptr, stride_k, row, S, K, BLOCK_N, BLOCK_K, True)
    v = load_rows(v_ptr, stride_v, row, S, V, BLOCK_N, BLOCK_V, True)
    dk = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for _ in range(GROUP):
        for MASK in tl.static_range(2):
            for i in range(num_tiles(low, full, beyond, high, BLOCK_M, MASK)):
                m = tile(i, low, full, beyond, BLOCK_M, MASK)
                q = load_rows(q_ptr, q_strides[1], m, T, K, BLOCK_M, BLOCK_K, MASK)
                dy = load_rows(dy_ptr, dy_strides[1], m, T, V, BLOCK_M, BLOCK_V, MASK)
                products = tl.dot(k, tl.trans(q), input_precision="ieee")
                visible = None
                lse = load_numbers(lse_ptr, m, T, BLOCK_M, float("inf"), MASK)
                if MASK:
                    position = (m + tl.arange(0, BLOCK_M) + (S - T))[None, :]
                    visible = is_visible(key[:, None], position, window, HAS_WINDOW)
                    if ends is not None:
                        visible &= position < ends[:, None]
                weights, slope = _weights_and_slope(products, visible, lse[None, :], factor, ceiling, HAS_SOFTCAP)
                weights = weights.to(dy.dtype)
                dv = tl.dot(weights, dy, dv, input_precision="ieee")
                dweights = tl.dot(v, tl.trans(dy), input_precision="ieee")
                delta = load_numbers(delta_ptr, m, T, BLOCK_M, 0.0, MASK)
                dproducts = weights.to(tl.float32) * (dweights - delta[None, :]) * slope
                dk = tl.dot(dproducts.to(q.dtype), q, dk, input_precision="ieee")
        q_ptr += q_strides[2]
        dy_ptr += dy_strides[2]
        lse_ptr += T
        delta_ptr += T
    store_rows(dk_ptr, stride_dk, row, S, dk * scale, K, BLOCK_N, BLOCK_K)
    store_rows(dv_ptr, stride_dv, row, S, dv, V, BLOCK_N, BLOCK_V)


@triton.jit
def _queries_of_keys(ends, row, T, S, window, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """(low, full, beyond, high): the queries low..high see some of the keys row.., full..beyond see all of them.

    low, full and beyond are multiples of BLOCK_M. `ends` is the position that sees each key no more, or None.
    """
    before = S - T
    last = tl.minimum(row + BLOCK_N, S) - 1
    high = T
    high_for_all = T
    if HAS_WINDOW:
        high = tl.minimum(high, last + window - before)
        high_for_all = tl.minimum(high_for_all, row + window - before)
    if ends is not None:
        exists = row + tl.arange(0, BLOCK_N) < S
        high = tl.minimum(high, tl.max(tl.where(exists, ends, 0), 0) - before)
        high_for_all = tl.minimum(high_for_all, tl.min(tl.where(exists, ends, S), 0) - before)
    low = tl.maximum(row - before, 0) // BLOCK_M * BLOCK_M
    full = (tl.maximum(last - before, 0) + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    full = tl.minimum(full, (tl.maximum(high, 0) + BLOCK_M - 1) // BLOCK_M * BLOCK_M)
    full = tl.maximum(full, low)
    beyond = tl.maximum(tl.maximum(high_for_all, 0) // BLOCK_M * BLOCK_M, full)
    return low, full, beyond, high


def run_backward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, bounds: tuple[Tensor | None, Tensor | None],
    y: Tensor, lse: Tensor, dy: Tensor, window: int | None, scale: float, scores: Scores,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """dq, dk, dv in the dtypes of q, k, v; dsinks (h,) in float32."""
    (b, t, h, k_dim), (s, g, v_dim) = q.shape, v.shape[1:]
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    delta, blocks = torch.empty_like(lse), triton.cdiv(t, DELTA_ROWS)
    dsinks = None if sinks is None else lse.new_empty(b, h, blocks)
    causal_attention_bwd_delta_kernel[(blocks * b * h,)](
        y, lse, dy, sinks, delta, dsinks, y.stride()[:3], dy.stride()[:3], t, h, v_dim, DELTA_ROWS, padded(v_dim)
    )
    first, ends = bounds
    config = BACKWARD.pick(q.dtype, max(padded(k_dim), padded(v_dim)))
    programs = triton.cdiv(s, config["BLOCK"]) + h // g * triton.cdiv(t, config["BLOCK"])  # of a key head
    causal_attention_bwd_kernel[(programs * b * g,)](
        q, k, v, first, ends, lse, delta, dy, dq, dk, dv, *(x.stride()[:3] for x in (q, k, v, dy)),
        t, s, g, s if window is None else window, scale, scores.factor, scores.ceiling, h // g, k_dim, v_dim,
        BLOCK_K=padded(k_dim), BLOCK_V=padded(v_dim), HAS_WINDOW=window is not None, HAS_SOFTCAP=scores.HAS_SOFTCAP,
        **config,
    )  # fmt: skip
    return dq, dk, dv, None if dsinks is None else dsinks.sum((0, 2))
