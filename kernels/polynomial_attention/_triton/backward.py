"""Kernels that only the backward pass needs."""

import triton
import triton.language as tl

from .tiles import flat, load_last, load_tokens, load_values, locate, own_segment, product_rows


@triton.jit
def polynomial_attention_bwd_normaliser_kernel(
    dy_ptr, y_ptr, inverse_ptr, dnormaliser_ptr, num_rows, T, dy_stride_b, dy_stride_t, dy_stride_h,
    H: tl.constexpr, V: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program takes BLOCK_ROWS rows (b, t, h): the gradient of their normaliser, -dy.y / normaliser."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    mask_rows = rows < num_rows
    offs_v = tl.arange(0, BLOCK_V)
    mask = mask_rows[:, None] & (offs_v < V)[None, :]
    h, token = rows % H, rows // H
    places = (token // T) * dy_stride_b + (token % T) * dy_stride_t + h * dy_stride_h
    dy = tl.load(dy_ptr + places[:, None] + offs_v[None, :], mask=mask, other=0.0).to(tl.float32)
    y = tl.load(y_ptr + rows[:, None] * V + offs_v[None, :], mask=mask, other=0.0).to(tl.float32)
    inverse = tl.load(inverse_ptr + rows, mask=mask_rows, other=0.0)
    tl.store(dnormaliser_ptr + rows, -tl.sum(dy * y, axis=1) * inverse, mask=mask_rows)


@triton.jit
def polynomial_attention_bwd_kernel(
    x_ptr, z_ptr, u_ptr, w_ptr, factor_ptr, last_ptr, states_ptr, dx_ptr,
    cu_seqlens_ptr, owners_ptr, firsts_ptr, segment_firsts_ptr,
    T, per_sequence, segments_per_sequence, c1, c2,
    x_stride_b, x_stride_t, x_stride_h, z_stride_b, z_stride_t, z_stride_h,
    u_stride_b, u_stride_t, u_stride_h, w_stride_b, w_stride_t, w_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, R: tl.constexpr, W: tl.constexpr, SEGMENT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_ONE: tl.constexpr, HAS_LINEAR: tl.constexpr,
    HAS_SQUARE: tl.constexpr, NORMALIZE: tl.constexpr, READS: tl.constexpr, REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """One program writes dx of BLOCK_T tokens: dx_i = sum_j (u_i.w_j) p'(x_i.z_j) z_j + (d features(x_i) / dx_i) S u_i.

    Forward in time this is dq (x, z = q, k; u, w = dy, v); REVERSE, it is dk (x, z = k, q; u, w = v, dy), with j from
    i on and S the gradient of the state at the segment's end. Beside dy stand each token's factor and the gradient of
    its normaliser; beside v stands a column of ones.
    """
    h = (tl.program_id(0) % H).to(tl.int64)
    sequence, row, begin, end, start = locate(
        tl.program_id(0) // H, T, per_sequence, BLOCK_T, owners_ptr, firsts_ptr, cu_seqlens_ptr, PACKED
    )
    if start >= end:
        return
    U_IS_GRADIENT: tl.constexpr = not REVERSE
    GROUPS: tl.constexpr = BLOCK_K // BLOCK_I
    offs_k, offs_t = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_T)
    x_ptr += row * x_stride_b + h * x_stride_h
    z_ptr += row * z_stride_b + h * z_stride_h
    u_ptr += row * u_stride_b + h * u_stride_h
    w_ptr += row * w_stride_b + h * w_stride_h
    factor_ptr += row * T * H + h
    last_ptr += row * T * H + h
    segment, first, stop = own_segment(
        sequence, begin, end, start, segments_per_sequence, segment_firsts_ptr, SEGMENT, PACKED
    )
    if NORMALIZE:
        u_last = load_last(last_ptr, start, stop, H, BLOCK_T, U_IS_GRADIENT)

    if REVERSE:  # the gradient of a state holds the weights; what remains is the derivative of x_i x_j
        w1, w2_diagonal, w2 = 1.0, 2.0, 1.0
    else:  # x_i x_j stands for x_j x_i as well
        w1, w2_diagonal, w2 = c1, 2 * c2, 2 * c2
    # Groups of BLOCK_I dims stand side by side, so that a group's gradient can be added to its place.
    dx_groups = tl.zeros((BLOCK_T, GROUPS, BLOCK_I), tl.float32)
    if READS:
        states_ptr += (segment.to(tl.int64) * H + h) * R * W
        for i_first in range(0, K, BLOCK_I):
            offs_i = i_first + tl.arange(0, BLOCK_I)
            dxi = tl.zeros((BLOCK_T, BLOCK_I), tl.float32)
            if HAS_LINEAR:
                linear_rows = (HAS_ONE + offs_i) * W
                mask_i = offs_i < K
                for v1_first in range(0, V, BLOCK_V):
                    offs_v1 = v1_first + tl.arange(0, BLOCK_V)
                    u1 = load_values(
                        u_ptr, start, stop, u_stride_t, offs_v1, factor_ptr, H, V, BLOCK_T,
                        NORMALIZE and U_IS_GRADIENT, OPERAND,
                    )  # fmt: skip
                    s1 = tl.load(
                        states_ptr + linear_rows[None, :] + offs_v1[:, None],
                        mask=mask_i[None, :] & (offs_v1 < V)[:, None],
                        other=0.0,
                    )
                    dxi = tl.dot(u1, (w1 * s1).to(OPERAND), dxi, input_precision=PRECISION)
                if NORMALIZE:
                    s1_last = tl.load(states_ptr + linear_rows + V, mask=mask_i, other=0.0)
                    dxi += w1 * u_last[:, None] * s1_last[None, :]
            if HAS_SQUARE:
                for j_first in range(0, K, BLOCK_I):
                    offs_j = j_first + tl.arange(0, BLOCK_I)
                    rows = product_rows(offs_i, offs_j, K, HAS_ONE + HAS_LINEAR * K) * W  # (BLOCK_I, BLOCK_I)
                    mask = (offs_i < K)[:, None] & (offs_j < K)[None, :]
                    weights = tl.where(offs_i[:, None] == offs_j[None, :], w2_diagonal, w2)
                    dfeatures = tl.zeros((BLOCK_T, BLOCK_I * BLOCK_I), tl.float32)
                    for v_first in range(0, V, BLOCK_V):
                        offs_v = v_first + tl.arange(0, BLOCK_V)
                        u = load_values(
                            u_ptr, start, stop, u_stride_t, offs_v, factor_ptr, H, V, BLOCK_T,
                            NORMALIZE and U_IS_GRADIENT, OPERAND,
                        )  # fmt: skip
                        place = states_ptr + flat(rows)[None, :] + offs_v[:, None]
                        s2 = tl.load(place, mask=flat(mask)[None, :] & (offs_v < V)[:, None], other=0.0)
                        s2 = (flat(weights)[None, :] * s2).to(OPERAND)
                        dfeatures = tl.dot(u, s2, dfeatures, input_precision=PRECISION)
                    xj = load_tokens(x_ptr, start, stop, x_stride_t, offs_j, K, BLOCK_T).to(tl.float32)
                    dfeatures = tl.reshape(dfeatures, (BLOCK_T, BLOCK_I, BLOCK_I))
                    dxi += tl.sum(dfeatures * xj[:, None, :], axis=2)
                    if NORMALIZE:
                        s2_last = weights * tl.load(states_ptr + rows + V, mask=mask, other=0.0)
                        dxi += u_last[:, None] * tl.dot(xj, tl.trans(s2_last), input_precision=PRECISION)
            here = tl.arange(0, GROUPS) == i_first // BLOCK_I
            dx_groups += tl.where(here[None, :, None], dxi[:, None, :], 0.0)
    dx = tl.reshape(dx_groups, (BLOCK_T, BLOCK_K))

    x = load_tokens(x_ptr, start, stop, x_stride_t, offs_k, K, BLOCK_T).to(OPERAND)
    if REVERSE:
        lower, upper_end = start, stop
    else:
        lower, upper_end = first, start + BLOCK_T
    for now in range(lower, upper_end, BLOCK_T):
        z = load_tokens(z_ptr, now, stop, z_stride_t, offs_k, K, BLOCK_T).to(OPERAND)
        s = tl.dot(x, tl.trans(z), input_precision=PRECISION)  # (BLOCK_T, BLOCK_T)
        dp = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
        for v_first in range(0, V, BLOCK_V):
            offs_v = v_first + tl.arange(0, BLOCK_V)
            u = load_values(
                u_ptr, start, stop, u_stride_t, offs_v, factor_ptr, H, V, BLOCK_T,
                NORMALIZE and U_IS_GRADIENT, OPERAND,
            )  # fmt: skip
            w = load_values(
                w_ptr, now, stop, w_stride_t, offs_v, factor_ptr, H, V, BLOCK_T,
                NORMALIZE and not U_IS_GRADIENT, OPERAND,
            )  # fmt: skip
            dp = tl.dot(u, tl.trans(w), dp, input_precision=PRECISION)
        if NORMALIZE:
            dp += u_last[:, None] * load_last(last_ptr, now, stop, H, BLOCK_T, not U_IS_GRADIENT)[None, :]
        ds = dp * (c1 + 2 * c2 * s)
        if now == start:
            order = offs_t[:, None] - offs_t[None, :]
            ds = tl.where(order <= 0 if REVERSE else order >= 0, ds, 0.0)
        dx = tl.dot(ds.to(OPERAND), z, dx, input_precision=PRECISION)

    place = dx_ptr + ((row * T + start + offs_t) * H + h)[:, None] * K + offs_k[None, :]
    mask = (start + offs_t < end)[:, None] & (offs_k < K)[None, :]
    tl.store(place, dx.to(dx_ptr.dtype.element_ty), mask=mask)
