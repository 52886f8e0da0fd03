"""One token, as decoding has it: the state is read once and written once."""

import triton
import triton.language as tl

from .tiles import flat, product_rows


@triton.jit
def polynomial_attention_step_kernel(
    q_ptr, k_ptr, v_ptr, state_ptr, after_ptr, y_ptr, inverse_ptr, c0, c1, c2, epsilon,
    q_stride_b, q_stride_h, k_stride_b, k_stride_h, v_stride_b, v_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, R: tl.constexpr, W: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_V: tl.constexpr, HAS_ONE: tl.constexpr, HAS_LINEAR: tl.constexpr,
    HAS_SQUARE: tl.constexpr, NORMALIZE: tl.constexpr,
):  # fmt: skip
    """One program adds features(k) v^T to BLOCK_V columns of a head's state, and reads them through features(q).

    Every program keeps the normaliser's column too, to divide by it; the first writes it.
    """
    b, h = (tl.program_id(0) // H).to(tl.int64), (tl.program_id(0) % H).to(tl.int64)
    offs_v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_v = offs_v < V
    is_first = tl.program_id(1) == 0
    q_ptr += b * q_stride_b + h * q_stride_h
    k_ptr += b * k_stride_b + h * k_stride_h
    state_ptr += (b * H + h) * R * W
    after_ptr += (b * H + h) * R * W
    v = tl.load(v_ptr + b * v_stride_b + h * v_stride_h + offs_v, mask=mask_v, other=0.0).to(tl.float32)
    y = tl.zeros((BLOCK_V,), tl.float32)
    normaliser = 0.0
    if HAS_ONE:
        s0 = tl.load(state_ptr + offs_v, mask=mask_v, other=0.0) + v
        tl.store(after_ptr + offs_v, s0, mask=mask_v)
        y += c0 * s0
        if NORMALIZE:
            s0_last = tl.load(state_ptr + V) + 1.0
            tl.store(after_ptr + V, s0_last, mask=is_first)
            normaliser += c0 * s0_last
    for i_first in range(0, K, BLOCK_I):
        offs_i = i_first + tl.arange(0, BLOCK_I)
        mask_i = offs_i < K
        qi = tl.load(q_ptr + offs_i, mask=mask_i, other=0.0).to(tl.float32)
        ki = tl.load(k_ptr + offs_i, mask=mask_i, other=0.0).to(tl.float32)
        if HAS_LINEAR:
            linear_rows = (HAS_ONE + offs_i) * W
            linear_place = linear_rows[:, None] + offs_v[None, :]
            linear_mask = mask_i[:, None] & mask_v[None, :]
            s1 = tl.load(state_ptr + linear_place, mask=linear_mask, other=0.0) + ki[:, None] * v[None, :]
            tl.store(after_ptr + linear_place, s1, mask=linear_mask)
            y += c1 * tl.sum(qi[:, None] * s1, axis=0)
            if NORMALIZE:
                s1_last = tl.load(state_ptr + linear_rows + V, mask=mask_i, other=0.0) + ki
                tl.store(after_ptr + linear_rows + V, s1_last, mask=mask_i & is_first)
                normaliser += c1 * tl.sum(qi * s1_last, axis=0)
        if HAS_SQUARE:
            for j_first in range(i_first, K, BLOCK_I):
                offs_j = j_first + tl.arange(0, BLOCK_I)
                qj = tl.load(q_ptr + offs_j, mask=offs_j < K, other=0.0).to(tl.float32)
                kj = tl.load(k_ptr + offs_j, mask=offs_j < K, other=0.0).to(tl.float32)
                rows = product_rows(offs_i, offs_j, K, HAS_ONE + HAS_LINEAR * K) * W  # (BLOCK_I, BLOCK_I)
                upper = (offs_i[:, None] <= offs_j[None, :]) & (offs_j < K)[None, :]
                # x_i x_j stands for x_j x_i as well.
                weights = tl.where(offs_i[:, None] == offs_j[None, :], c2, 2 * c2)
                of_q, of_k = weights * qi[:, None] * qj[None, :], ki[:, None] * kj[None, :]
                place = flat(rows)[:, None] + offs_v[None, :]
                mask = flat(upper)[:, None] & mask_v[None, :]
                s2 = tl.load(state_ptr + place, mask=mask, other=0.0) + flat(of_k)[:, None] * v[None, :]
                tl.store(after_ptr + place, s2, mask=mask)
                y += tl.sum(tl.where(mask, flat(of_q)[:, None] * s2, 0.0), axis=0)
                if NORMALIZE:
                    s2_last = tl.load(state_ptr + rows + V, mask=upper, other=0.0) + of_k
                    tl.store(after_ptr + rows + V, s2_last, mask=upper & is_first)
                    normaliser += tl.sum(flat(tl.where(upper, of_q * s2_last, 0.0)), axis=0)
    if NORMALIZE:
        inverse = 1.0 / (normaliser + epsilon)
        y *= inverse
        tl.store(inverse_ptr + b * H + h, inverse, mask=is_first)
    tl.store(y_ptr + (b * H + h) * V + offs_v, y.to(y_ptr.dtype.element_ty), mask=mask_v)
