"""The forward pass: a program walks one block of queries of one head over the keys that it sees.

What every query of the block sees needs no mask; only the ragged ends, where the diagonal, the edge of the window or
the border of a sequence cuts through, pay for one.
"""

import triton
import triton.language as tl
from torch import Tensor

from ._configs import FORWARD
from ._tiles import (
    LOG2_E,
    Scores,
    is_visible,
    keys_of_rows,
    load_rows,
    padded,
    rows_of_program,
    store_rows,
    tanh,
)


@triton.jit
def attend(
    acc, weight_sum, largest, q, k_ptr, v_ptr, stride_k, stride_v, low, high, position, first, S, window, factor,
    ceiling, K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """Online softmax (in base 2) over the keys low..high. `largest` is -inf for a query that has seen none."""
    for n in range(low, high, BLOCK_N):
        k = load_rows(k_ptr, stride_k, n, S, K, BLOCK_N, BLOCK_K, MASK)  # (BLOCK_N, BLOCK_K)
        products = tl.dot(q, tl.trans(k), input_precision="ieee")  # (BLOCK_M, BLOCK_N)
        if HAS_SOFTCAP:
            products = ceiling * tanh(products * factor)
        if MASK:
            key = n + tl.arange(0, BLOCK_N)[None, :]
            visible = is_visible(key, position[:, None], window, HAS_WINDOW)
            if first is not None:
                visible &= key >= first[:, None]
            products = tl.where(visible, products, float("-inf"))
        # The factor is positive, so it is applied after the maximum: then one fused multiply-add feeds exp2.
        to_score = 1.0 if HAS_SOFTCAP else factor
        new_largest = tl.maximum(largest, tl.max(products, 1) * to_score)
        shift = new_largest
        if MASK:
            shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp2(products * to_score - shift[:, None])
        shrink = tl.exp2(largest - shift)
        v = load_rows(v_ptr, stride_v, n, S, V, BLOCK_N, BLOCK_V, MASK)  # (BLOCK_N, BLOCK_V)
        weight_sum = weight_sum * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        largest = new_largest
    return acc, weight_sum, largest


@triton.jit
def causal_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, sinks_ptr, first_ptr, y_ptr, lse_ptr, q_strides, k_strides, v_strides, y_strides,
    T, S, H, window, factor, ceiling, GROUP: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head; scores never leave the chip. Strides are of (batch, time, head)."""
    row, sequence_head, batch, head = rows_of_program(T, H, BLOCK_M)
    q_ptr += batch * q_strides[0] + head * q_strides[2]
    k_ptr += batch * k_strides[0] + head // GROUP * k_strides[2]
    v_ptr += batch * v_strides[0] + head // GROUP * v_strides[2]
    y_ptr += batch * y_strides[0] + head * y_strides[2]

    rows = row + tl.arange(0, BLOCK_M)
    position = rows + (S - T)
    first = None
    if first_ptr is not None:
        first = tl.load(first_ptr + batch * T + rows, mask=rows < T, other=S)
    low, full, diagonal, high = keys_of_rows(first, row, T, S, window, BLOCK_M, BLOCK_N, HAS_WINDOW)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight_sum = tl.zeros((BLOCK_M,), tl.float32)
    if sinks_ptr is not None:  # as if a key with this score and the value 0 had been seen
        largest = tl.zeros((BLOCK_M,), tl.float32) + tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E
        weight_sum += 1.0
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    q = load_rows(q_ptr, q_strides[1], row, T, K, BLOCK_M, BLOCK_K, True)
    if HAS_WINDOW or first_ptr is not None:
        acc, weight_sum, largest = attend(
            acc, weight_sum, largest, q, k_ptr, v_ptr, k_strides[1], v_strides[1], low, full, position, first, S,
            window, factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_N, HAS_WINDOW, HAS_SOFTCAP, True,
        )  # fmt: skip
    acc, weight_sum, largest = attend(
        acc, weight_sum, largest, q, k_ptr, v_ptr, k_strides[1], v_strides[1], full, diagonal, position, first, S,
        window, factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_N, HAS_WINDOW, HAS_SOFTCAP, False,
    )  # fmt: skip
    acc, weight_sum, largest = attend(
        acc, weight_sum, largest, q, k_ptr, v_ptr, k_strides[1], v_strides[1], diagonal, high, position, first, S,
        window, factor, ceiling, K, V, BLOCK_K, BLOCK_V, BLOCK_N, HAS_WINDOW, HAS_SOFTCAP, True,
    )  # fmt: skip

    saw_something = weight_sum > 0
    y = acc / tl.where(saw_something, weight_sum, 1.0)[:, None]
    store_rows(y_ptr, y_strides[1], row, T, y, V, BLOCK_M, BLOCK_V)
    # +inf makes every weight 0 when the backward pass computes exp2(score - lse).
    lse = tl.where(saw_something, largest + tl.log2(tl.where(saw_something, weight_sum, 1.0)), float("inf"))
    tl.store(lse_ptr + sequence_head * T + rows, lse, mask=rows < T)


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, first: Tensor | None, y: Tensor, lse: Tensor,
    window: int | None, scores: Scores,
) -> None:  # fmt: skip
    """Fill y (b, t, h, v) and lse (b, h, t), the logarithm (base 2) of the sum of the weights."""
    (b, t, h, k_dim), (s, g, v_dim) = q.shape, v.shape[1:]
    config = FORWARD.pick(q.dtype, max(padded(k_dim), padded(v_dim)))
    causal_attention_fwd_kernel[(triton.cdiv(t, config["BLOCK_M"]) * b * h,)](
        q, k, v, sinks, first, y, lse, q.stride()[:3], k.stride()[:3], v.stride()[:3], y.stride()[:3],
        t, s, h, s if window is None else window, scores.factor, scores.ceiling, h // g, k_dim, v_dim,
        **config, BLOCK_K=padded(k_dim), BLOCK_V=padded(v_dim),
        HAS_WINDOW=window is not None, HAS_SOFTCAP=scores.HAS_SOFTCAP,
    )  # fmt: skip
