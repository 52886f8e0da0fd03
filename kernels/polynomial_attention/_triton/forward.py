"""Kernels of the forward pass; time reversed, with queries and keys exchanged, they also serve the backward pass."""

import triton
import triton.language as tl

from .tiles import (
    flat,
    load_last,
    load_tokens,
    load_tokens_transposed,
    load_values,
    locate,
    outer,
    outer_transposed,
    own_segment,
    product_rows,
)


@triton.jit
def polynomial_attention_sum_kernel(
    x_ptr, u_ptr, factor_ptr, last_ptr, sums_ptr, cu_seqlens_ptr, owners_ptr, firsts_ptr,
    T, per_sequence, c0, c1, c2, x_stride_b, x_stride_t, x_stride_h, u_stride_b, u_stride_t, u_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, R: tl.constexpr, W: tl.constexpr, SEGMENT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_V: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, HAS_ONE: tl.constexpr, HAS_LINEAR: tl.constexpr, HAS_SQUARE: tl.constexpr,
    NORMALIZE: tl.constexpr, IS_GRADIENT: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """One program sums features(x)^T u over a segment: the products of two groups of BLOCK_I dims x BLOCK_V channels.

    The features are formed in registers. A program whose two groups are the same also sums x^T u and u. Sums of
    queries and dy (IS_GRADIENT) get the weights with which queries read a state.
    """
    segment, h = tl.program_id(0) // H, (tl.program_id(0) % H).to(tl.int64)
    GROUPS: tl.constexpr = (K + BLOCK_I - 1) // BLOCK_I
    v_block = tl.program_id(1) // (GROUPS * GROUPS)
    i_group, j_group = (tl.program_id(1) // GROUPS) % GROUPS, tl.program_id(1) % GROUPS
    _, row, _, end, start = locate(segment, T, per_sequence, SEGMENT, owners_ptr, firsts_ptr, cu_seqlens_ptr, PACKED)
    if (start >= end) | (j_group < i_group) | ((not HAS_SQUARE) & (j_group > i_group)):
        return
    offs_i = i_group * BLOCK_I + tl.arange(0, BLOCK_I)
    offs_j = j_group * BLOCK_I + tl.arange(0, BLOCK_I)
    offs_v = v_block * BLOCK_V + tl.arange(0, BLOCK_V)
    x_ptr += row * x_stride_b + h * x_stride_h
    u_ptr += row * u_stride_b + h * u_stride_h
    factor_ptr += row * T * H + h
    last_ptr += row * T * H + h
    stop = tl.minimum(end, start + SEGMENT)

    squares = tl.zeros((BLOCK_I * BLOCK_I, BLOCK_V), tl.float32)
    squares_last = tl.zeros((BLOCK_I, BLOCK_I), tl.float32)
    linear = tl.zeros((BLOCK_I, BLOCK_V), tl.float32)
    linear_last = tl.zeros((BLOCK_I, BLOCK_T), tl.float32)
    one = tl.zeros((BLOCK_V,), tl.float32)
    one_last = tl.zeros((BLOCK_T,), tl.float32)
    for now in range(start, stop, BLOCK_T):
        xi = load_tokens_transposed(x_ptr, now, stop, x_stride_t, offs_i, K, BLOCK_T)
        u = load_values(
            u_ptr, now, stop, u_stride_t, offs_v, factor_ptr, H, V, BLOCK_T, NORMALIZE and IS_GRADIENT, OPERAND
        )
        if NORMALIZE:
            last = load_last(last_ptr, now, stop, H, BLOCK_T, IS_GRADIENT)
        if HAS_SQUARE:
            xj = load_tokens_transposed(x_ptr, now, stop, x_stride_t, offs_j, K, BLOCK_T)
            features = outer_transposed(xi, xj, OPERAND)
            squares = tl.dot(features, u, squares, input_precision=PRECISION)
            if NORMALIZE:
                left = xi.to(tl.float32) * last[None, :]
                squares_last = tl.dot(left, tl.trans(xj.to(tl.float32)), squares_last, input_precision=PRECISION)
        if HAS_LINEAR:
            linear = tl.dot(xi.to(OPERAND), u, linear, input_precision=PRECISION)
            if NORMALIZE:
                linear_last += xi.to(tl.float32) * last[None, :]
        if HAS_ONE:
            one += tl.sum(u.to(tl.float32), axis=0)
            if NORMALIZE:
                one_last += last

    sums_ptr += (segment.to(tl.int64) * H + h) * R * W
    mask_v = offs_v < V
    if HAS_SQUARE:
        rows = product_rows(offs_i, offs_j, K, HAS_ONE + HAS_LINEAR * K)  # (BLOCK_I, BLOCK_I)
        mask = (offs_i[:, None] <= offs_j[None, :]) & (offs_j < K)[None, :]
        if IS_GRADIENT:
            weights = tl.where(offs_i[:, None] == offs_j[None, :], c2, 2 * c2)
            squares *= flat(weights)[:, None]
            squares_last *= weights
        place = sums_ptr + flat(rows)[:, None] * W + offs_v[None, :]
        tl.store(place, squares, mask=flat(mask)[:, None] & mask_v[None, :])
        if NORMALIZE:
            tl.store(sums_ptr + rows * W + V, squares_last, mask=mask & (v_block == 0))
    if i_group == j_group:
        if HAS_LINEAR:
            linear_rows = HAS_ONE + offs_i
            mask_i = offs_i < K
            if IS_GRADIENT:
                linear *= c1
                linear_last *= c1
            tl.store(
                sums_ptr + linear_rows[:, None] * W + offs_v[None, :], linear, mask=mask_i[:, None] & mask_v[None, :]
            )
            if NORMALIZE:
                tl.store(sums_ptr + linear_rows * W + V, tl.sum(linear_last, axis=1), mask=mask_i & (v_block == 0))
        if HAS_ONE and i_group == 0:
            if IS_GRADIENT:
                one *= c0
                one_last *= c0
            tl.store(sums_ptr + offs_v, one, mask=mask_v)
            if NORMALIZE and v_block == 0:
                tl.store(sums_ptr + V, tl.sum(one_last, axis=0))


@triton.jit
def polynomial_attention_scan_kernel(
    states_ptr, first_ptr, last_ptr, cu_seqlens_ptr, firsts_ptr, T, per_sequence,
    H: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, HAS_FIRST: tl.constexpr, REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """One program walks a sequence's segments for BLOCK of the state's SIZE numbers.

    Each sum is replaced by what stood before it (after it, REVERSE); what the walk ends with goes to last_ptr.
    """
    NUM_BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    h = (tl.program_id(0) // NUM_BLOCKS % H).to(tl.int64)
    sequence = (tl.program_id(0) // NUM_BLOCKS // H).to(tl.int64)
    offs = (tl.program_id(0) % NUM_BLOCKS) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < SIZE
    if PACKED:
        first = tl.load(firsts_ptr + sequence).to(tl.int64)
        count = tl.load(firsts_ptr + sequence + 1).to(tl.int64) - first
    else:
        first = sequence * per_sequence
        count = first * 0 + per_sequence
    own = (sequence * H + h) * SIZE + offs
    carry = tl.zeros((BLOCK,), tl.float32)
    if HAS_FIRST:
        carry += tl.load(first_ptr + own, mask=mask, other=0.0).to(tl.float32)
    for index in range(count):
        segment = first + (count - 1 - index if REVERSE else index)
        place = states_ptr + (segment * H + h) * SIZE + offs
        added = tl.load(place, mask=mask, other=0.0)
        tl.store(place, carry, mask=mask)
        carry += added
    tl.store(last_ptr + own, carry, mask=mask)


@triton.jit
def polynomial_attention_out_kernel(
    x_ptr, z_ptr, u_ptr, factor_ptr, states_ptr, y_ptr, inverse_ptr,
    cu_seqlens_ptr, owners_ptr, firsts_ptr, segment_firsts_ptr,
    T, per_sequence, segments_per_sequence, c0, c1, c2, epsilon,
    x_stride_b, x_stride_t, x_stride_h, z_stride_b, z_stride_t, z_stride_h, u_stride_b, u_stride_t, u_stride_h,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, R: tl.constexpr, W: tl.constexpr, SEGMENT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_ONE: tl.constexpr, HAS_LINEAR: tl.constexpr,
    HAS_SQUARE: tl.constexpr, NORMALIZE: tl.constexpr, READS: tl.constexpr, REVERSE: tl.constexpr,
    PACKED: tl.constexpr,
):  # fmt: skip
    """One program writes y for BLOCK_T tokens and BLOCK_V channels: y_i = sum_j p(x_i.z_j) u_j + features(x_i) S.

    j runs over the tokens of i's segment up to i (from i on, REVERSE); S is the state at the segment's border.
    REVERSE gives dv from dy: there u is dy times each token's factor, and nothing is normalised.
    """
    h, offs_v = (tl.program_id(0) % H).to(tl.int64), tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    sequence, row, begin, end, start = locate(
        tl.program_id(0) // H, T, per_sequence, BLOCK_T, owners_ptr, firsts_ptr, cu_seqlens_ptr, PACKED
    )
    if start >= end:
        return
    offs_k, offs_t = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_T)
    x_ptr += row * x_stride_b + h * x_stride_h
    z_ptr += row * z_stride_b + h * z_stride_h
    u_ptr += row * u_stride_b + h * u_stride_h
    factor_ptr += row * T * H + h
    segment, first, stop = own_segment(
        sequence, begin, end, start, segments_per_sequence, segment_firsts_ptr, SEGMENT, PACKED
    )

    DIVIDES: tl.constexpr = NORMALIZE and not REVERSE
    if REVERSE:  # the gradient of a state holds the weights
        w0, w1, w2_diagonal, w2 = 1.0, 1.0, 1.0, 1.0
    else:  # x_i x_j stands for x_j x_i as well
        w0, w1, w2_diagonal, w2 = c0, c1, c2, 2 * c2
    y = tl.zeros((BLOCK_T, BLOCK_V), tl.float32)
    normaliser = tl.zeros((BLOCK_T,), tl.float32)
    if READS:
        states_ptr += (segment.to(tl.int64) * H + h) * R * W
        mask_v = offs_v < V
        if HAS_ONE:
            y += w0 * tl.load(states_ptr + offs_v, mask=mask_v, other=0.0)[None, :]
            if DIVIDES:
                normaliser += w0 * tl.load(states_ptr + V)
        for i_first in range(0, K, BLOCK_I):
            offs_i = i_first + tl.arange(0, BLOCK_I)
            xi = load_tokens(x_ptr, start, stop, x_stride_t, offs_i, K, BLOCK_T)
            if HAS_LINEAR:
                linear_rows = (HAS_ONE + offs_i) * W
                mask_i = offs_i < K
                s1 = tl.load(
                    states_ptr + linear_rows[:, None] + offs_v[None, :],
                    mask=mask_i[:, None] & mask_v[None, :],
                    other=0.0,
                )
                y = tl.dot(xi.to(OPERAND), (w1 * s1).to(OPERAND), y, input_precision=PRECISION)
                if DIVIDES:
                    s1_last = tl.load(states_ptr + linear_rows + V, mask=mask_i, other=0.0)
                    normaliser += w1 * tl.sum(xi.to(tl.float32) * s1_last[None, :], axis=1)
            if HAS_SQUARE:
                for j_first in range(i_first, K, BLOCK_I):
                    offs_j = j_first + tl.arange(0, BLOCK_I)
                    xj = load_tokens(x_ptr, start, stop, x_stride_t, offs_j, K, BLOCK_T)
                    features = outer(xi, xj, OPERAND)  # (BLOCK_T, BLOCK_I * BLOCK_I)
                    rows = product_rows(offs_i, offs_j, K, HAS_ONE + HAS_LINEAR * K) * W  # (BLOCK_I, BLOCK_I)
                    mask = (offs_i[:, None] <= offs_j[None, :]) & (offs_j < K)[None, :]
                    weights = tl.where(offs_i[:, None] == offs_j[None, :], w2_diagonal, w2)
                    place = states_ptr + flat(rows)[:, None] + offs_v[None, :]
                    s2 = tl.load(place, mask=flat(mask)[:, None] & mask_v[None, :], other=0.0)
                    y = tl.dot(features, (flat(weights)[:, None] * s2).to(OPERAND), y, input_precision=PRECISION)
                    if DIVIDES:
                        s2_last = weights * tl.load(states_ptr + rows + V, mask=mask, other=0.0)
                        right = tl.dot(xi.to(tl.float32), s2_last, input_precision=PRECISION)  # (BLOCK_T, BLOCK_I)
                        normaliser += tl.sum(right * xj.to(tl.float32), axis=1)

    x = load_tokens(x_ptr, start, stop, x_stride_t, offs_k, K, BLOCK_T).to(OPERAND)
    if REVERSE:
        lower, upper_end = start, stop
    else:
        lower, upper_end = first, start + BLOCK_T
    for now in range(lower, upper_end, BLOCK_T):
        z = load_tokens(z_ptr, now, stop, z_stride_t, offs_k, K, BLOCK_T).to(OPERAND)
        u = load_values(u_ptr, now, stop, u_stride_t, offs_v, factor_ptr, H, V, BLOCK_T, NORMALIZE and REVERSE, OPERAND)
        s = tl.dot(x, tl.trans(z), input_precision=PRECISION)  # (BLOCK_T, BLOCK_T)
        p = c0 + s * (c1 + c2 * s)
        if now == start:
            order = offs_t[:, None] - offs_t[None, :]
            p = tl.where(order <= 0 if REVERSE else order >= 0, p, 0.0)
        y = tl.dot(p.to(OPERAND), u, y, input_precision=PRECISION)
        if DIVIDES:
            normaliser += tl.sum(p, axis=1)

    token = row * T + start
    mask_t = start + offs_t < end
    if DIVIDES:
        inverse = 1.0 / (normaliser + epsilon)
        y *= inverse[:, None]
        tl.store(inverse_ptr + (token + offs_t) * H + h, inverse, mask=mask_t & (tl.program_id(1) == 0))
    place = y_ptr + ((token + offs_t) * H + h)[:, None] * V + offs_v[None, :]
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=mask_t[:, None] & (offs_v < V)[None, :])
