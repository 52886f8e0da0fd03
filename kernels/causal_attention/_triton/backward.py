"""The backward pass: two kernels compute the weights again, one block of queries or of keys at a time.

The first walks a block of queries over the keys and gives dq; on the way it leaves delta = sum(dy * y) for the second,
which walks a block of keys over the queries of every head that reads them. Each sum stays in one program, in one
order: nothing is added atomically.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._target import multiplies_from_shared_memory
from ._tiles import (
    LOG2_E,
    Scores,
    Tiles,
    float32_tiles,
    is_visible,
    keys_of_rows,
    load_rows,
    padded,
    rows_of_program,
    store_rows,
    tanh,
)


@triton.jit
def _weights_and_slope(products, visible, lse, factor, ceiling, HAS_SOFTCAP: tl.constexpr, MASK: tl.constexpr):
    """exp2(score - lse), and what turns a gradient of the score into one of scale * q . k."""
    slope = 1.0
    score = products * factor
    if HAS_SOFTCAP:
        capped = tanh(score)
        slope = 1.0 - capped * capped
        score = ceiling * capped
    if MASK:
        score = tl.where(visible, score, float("-inf"))
    return tl.exp2(score - lse), slope


@triton.jit
def _walk_keys(
    dq, q, dy, lse, delta, k_ptr, v_ptr, stride_k, stride_v, low, high, position, first, S, window, factor, ceiling,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    for n in range(low, high, BLOCK_N):
        k = load_rows(k_ptr, stride_k, n, S, K, BLOCK_N, BLOCK_K, MASK)
        v = load_rows(v_ptr, stride_v, n, S, V, BLOCK_N, BLOCK_V, MASK)
        products = tl.dot(q, tl.trans(k), input_precision="ieee")  # (BLOCK_M, BLOCK_N)
        dweights = tl.dot(dy, tl.trans(v), input_precision="ieee")
        key = n + tl.arange(0, BLOCK_N)[None, :]
        visible = is_visible(key, position[:, None], window, HAS_WINDOW)
        if first is not None:
            visible &= key >= first[:, None]
        weights, slope = _weights_and_slope(products, visible, lse[:, None], factor, ceiling, HAS_SOFTCAP, MASK)
        dproducts = weights * (dweights - delta[:, None]) * slope
        dq = tl.dot(dproducts.to(k.dtype), k, dq, input_precision="ieee")
    return dq


@triton.jit
def causal_attention_bwd_q_kernel(
    q_ptr, k_ptr, v_ptr, sinks_ptr, first_ptr, y_ptr, lse_ptr, dy_ptr, dq_ptr, delta_ptr, dsinks_ptr,
    q_strides, k_strides, v_strides, y_strides, dy_strides, dq_strides,
    T, S, H, window, scale, factor, ceiling, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """dq of one block of queries of one head, its delta, and its part of the head's dsinks."""
    row, sequence_head, batch, head = rows_of_program(T, H, BLOCK_M)
    q_ptr += batch * q_strides[0] + head * q_strides[2]
    k_ptr += batch * k_strides[0] + head // GROUP * k_strides[2]
    v_ptr += batch * v_strides[0] + head // GROUP * v_strides[2]
    y_ptr += batch * y_strides[0] + head * y_strides[2]
    dy_ptr += batch * dy_strides[0] + head * dy_strides[2]
    dq_ptr += batch * dq_strides[0] + head * dq_strides[2]

    rows = row + tl.arange(0, BLOCK_M)
    position = rows + (S - T)
    first = None
    if first_ptr is not None:
        first = tl.load(first_ptr + batch * T + rows, mask=rows < T, other=S)
    low, full, diagonal, high = keys_of_rows(first, row, T, S, window, BLOCK_M, BLOCK_N, HAS_WINDOW)
    q = load_rows(q_ptr, q_strides[1], row, T, K, BLOCK_M, BLOCK_K, True)
    dy = load_rows(dy_ptr, dy_strides[1], row, T, V, BLOCK_M, BLOCK_V, True)
    y = load_rows(y_ptr, y_strides[1], row, T, V, BLOCK_M, BLOCK_V, True)
    lse = tl.load(lse_ptr + sequence_head * T + rows, mask=rows < T, other=float("inf"))
    delta = tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1)
    tl.store(delta_ptr + sequence_head * T + rows, delta, mask=rows < T)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E
        dsinks = -tl.sum(tl.exp2(sink - lse) * delta, 0)
        tl.store(dsinks_ptr + sequence_head * tl.cdiv(T, BLOCK_M) + row // BLOCK_M, dsinks)

    dq = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    if HAS_WINDOW or first_ptr is not None:
        dq = _walk_keys(
            dq, q, dy, lse, delta, k_ptr, v_ptr, k_strides[1], v_strides[1], low, full, position, first, S, window,
            factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_N, HAS_WINDOW, HAS_SOFTCAP, True,
        )  # fmt: skip
    dq = _walk_keys(
        dq, q, dy, lse, delta, k_ptr, v_ptr, k_strides[1], v_strides[1], full, diagonal, position, first, S, window,
        factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_N, HAS_WINDOW, HAS_SOFTCAP, False,
    )  # fmt: skip
    dq = _walk_keys(
        dq, q, dy, lse, delta, k_ptr, v_ptr, k_strides[1], v_strides[1], diagonal, high, position, first, S, window,
        factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_N, HAS_WINDOW, HAS_SOFTCAP, True,
    )  # fmt: skip
    store_rows(dq_ptr, dq_strides[1], row, T, dq * scale, K, BLOCK_M, BLOCK_K)


@triton.jit
def _walk_queries(
    dk, dv, k, v, q_ptr, dy_ptr, lse_ptr, delta_ptr, stride_q, stride_dy, low, high, key, ends, T, S, window, factor,
    ceiling, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Scores are transposed, (BLOCK_N, BLOCK_M): so the weights leave one product and enter the next in registers."""
    for m in range(low, high, BLOCK_M):
        rows = m + tl.arange(0, BLOCK_M)
        q = load_rows(q_ptr, stride_q, m, T, K, BLOCK_M, BLOCK_K, MASK)
        dy = load_rows(dy_ptr, stride_dy, m, T, V, BLOCK_M, BLOCK_V, MASK)
        if MASK:
            lse = tl.load(lse_ptr + rows, mask=rows < T, other=float("inf"))
            delta = tl.load(delta_ptr + rows, mask=rows < T, other=0.0)
        else:
            lse = tl.load(lse_ptr + rows)
            delta = tl.load(delta_ptr + rows)
        products = tl.dot(k, tl.trans(q), input_precision="ieee")
        position = (rows + (S - T))[None, :]
        visible = is_visible(key[:, None], position, window, HAS_WINDOW)
        if ends is not None:
            visible &= position < ends[:, None]
        weights, slope = _weights_and_slope(products, visible, lse[None, :], factor, ceiling, HAS_SOFTCAP, MASK)
        dv = tl.dot(weights.to(dy.dtype), dy, dv, input_precision="ieee")
        dweights = tl.dot(v, tl.trans(dy), input_precision="ieee")
        dproducts = weights * (dweights - delta[None, :]) * slope
        dk = tl.dot(dproducts.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def causal_attention_bwd_kv_kernel(
    q_ptr, k_ptr, v_ptr, ends_ptr, lse_ptr, delta_ptr, dy_ptr, dk_ptr, dv_ptr,
    q_strides, k_strides, v_strides, dy_strides, dk_strides, dv_strides,
    T, S, G, window, scale, factor, ceiling, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """dk and dv of one block of keys of one key head, summed over the GROUP query heads that read it."""
    blocks = tl.cdiv(S, BLOCK_N)
    pid = tl.program_id(0)
    row = pid % blocks * BLOCK_N  # the first keys are seen by the most queries
    batch, key_head = (pid // blocks // G).to(tl.int64), (pid // blocks % G).to(tl.int64)
    k_ptr += batch * k_strides[0] + key_head * k_strides[2]
    v_ptr += batch * v_strides[0] + key_head * v_strides[2]
    dk_ptr += batch * dk_strides[0] + key_head * dk_strides[2]
    dv_ptr += batch * dv_strides[0] + key_head * dv_strides[2]

    key = row + tl.arange(0, BLOCK_N)
    ends = None
    if ends_ptr is not None:
        ends = tl.load(ends_ptr + batch * S + key, mask=key < S, other=0)
    low, full, beyond, high = _queries_of_keys(ends, row, T, S, window, BLOCK_M, BLOCK_N, HAS_WINDOW)
    k = load_rows(k_ptr, k_strides[1], row, S, K, BLOCK_N, BLOCK_K, True)
    v = load_rows(v_ptr, v_strides[1], row, S, V, BLOCK_N, BLOCK_V, True)
    dk = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for head in range(key_head * GROUP, key_head * GROUP + GROUP):
        q_head = q_ptr + batch * q_strides[0] + head * q_strides[2]
        dy_head = dy_ptr + batch * dy_strides[0] + head * dy_strides[2]
        lse_head = lse_ptr + (batch * G * GROUP + head) * T
        delta_head = delta_ptr + (batch * G * GROUP + head) * T
        dk, dv = _walk_queries(
            dk, dv, k, v, q_head, dy_head, lse_head, delta_head, q_strides[1], dy_strides[1], low, full, key, ends,
            T, S, window, factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_M, HAS_WINDOW, HAS_SOFTCAP, True,
        )  # fmt: skip
        dk, dv = _walk_queries(
            dk, dv, k, v, q_head, dy_head, lse_head, delta_head, q_strides[1], dy_strides[1], full, beyond, key, ends,
            T, S, window, factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_M, HAS_WINDOW, HAS_SOFTCAP, False,
        )  # fmt: skip
        dk, dv = _walk_queries(
            dk, dv, k, v, q_head, dy_head, lse_head, delta_head, q_strides[1], dy_strides[1], beyond, high, key, ends,
            T, S, window, factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_M, HAS_WINDOW, HAS_SOFTCAP, True,
        )  # fmt: skip
    store_rows(dk_ptr, dk_strides[1], row, S, dk * scale, K, BLOCK_N, BLOCK_K)
    store_rows(dv_ptr, dv_strides[1], row, S, dv, V, BLOCK_N, BLOCK_V)


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
    delta = torch.empty_like(lse)
    options = {
        "GROUP": h // g, "K": k_dim, "V": v_dim, "BLOCK_K": padded(k_dim), "BLOCK_V": padded(v_dim),
        "HAS_WINDOW": window is not None, "HAS_SOFTCAP": scores.HAS_SOFTCAP,
    }  # fmt: skip
    numbers = (s if window is None else window, scale, scores.factor, scores.ceiling)
    first, ends = bounds
    tiles = backward_q_tiles(q, v)
    blocks = triton.cdiv(t, tiles.BLOCK_M)
    dsinks = None if sinks is None else lse.new_empty(b, h, blocks)
    causal_attention_bwd_q_kernel[(blocks * b * h,)](
        q, k, v, sinks, first, y, lse, dy, dq, delta, dsinks, *(x.stride()[:3] for x in (q, k, v, y, dy, dq)),
        t, s, h, *numbers, **options, **tiles._asdict(),
    )  # fmt: skip
    tiles = backward_kv_tiles(q, v)
    causal_attention_bwd_kv_kernel[(triton.cdiv(s, tiles.BLOCK_N) * b * g,)](
        q, k, v, ends, lse, delta, dy, dk, dv, *(x.stride()[:3] for x in (q, k, v, dy, dk, dv)),
        t, s, g, *numbers, **options, **tiles._asdict(),
    )  # fmt: skip
    return dq, dk, dv, None if dsinks is None else dsinks.sum((0, 2))


def backward_q_tiles(q: Tensor, v: Tensor) -> Tiles:
    width = max(padded(q.shape[3]), padded(v.shape[3]))
    if q.dtype == torch.float32:
        return float32_tiles(width, two_accumulators=True)
    if width <= 64:
        return Tiles(128, 64, 8, 2)
    return Tiles(128, 32, 8, 2) if width <= 128 else Tiles(32, 32, 8, 1)


def backward_kv_tiles(q: Tensor, v: Tensor) -> Tiles:
    """Two accumulators of a whole block of keys leave few registers: only narrow blocks of queries fit beside them."""
    width = max(padded(q.shape[3]), padded(v.shape[3]))
    if q.dtype == torch.float32:
        return float32_tiles(width, two_accumulators=True)
    if width <= 64:
        return Tiles(32, 128, 8, 2)
    if width <= 128:
        return Tiles(32 if multiplies_from_shared_memory() else 16, 128, 8, 1)
    return Tiles(32, 32, 8, 1)
