"""Walks along time for keys of at most GROUP dims: the state stays in registers, and every token is read once.

All products x_i x_j of a token are formed, each pair twice, (i, j) and (j, i): a state holds the same sum in both
places. Weights stand with q: forward they are applied when q reads the state, in REVERSE when q writes its gradient.
The column that normalisation adds beside v (`last`) is kept apart.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._target import fills
from .. import EPSILON
from ._configs import BWD_WALK, WALK
from .tiles import (
    flat,
    load_last,
    load_scalars,
    load_tokens,
    load_tokens_transposed,
    load_values,
    outer,
    outer_transposed,
    product_rows,
)

GROUP = tl.constexpr(16)  # head dims of a tile, padded: products want 16 at least


@triton.jit
def _span_of(sequence, T, cu_seqlens_ptr):
    """(row of the batch, first token, end) of a sequence."""
    if cu_seqlens_ptr is not None:
        begin = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
        return sequence * 0, begin, tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)
    else:
        return sequence, sequence * 0, sequence * 0 + T


@triton.jit
def _places(offs_i, offs_j, K: tl.constexpr, FIRST: tl.constexpr, REVERSE: tl.constexpr):
    """Of products x_i x_j, (i, j): their row of the state, whether they are it, and their part of what it holds.

    A gradient in the state is that of both places together.
    """
    rows = product_rows(offs_i, offs_j, K, FIRST)
    share = tl.where(offs_i[:, None] == offs_j[None, :], 1.0, 0.5 if REVERSE else 1.0)
    return rows, (offs_i[:, None] < K) & (offs_j[None, :] < K), share


@triton.jit
def polynomial_attention_walk_kernel(
    x_ptr, z_ptr, u_ptr, factor_ptr, first_ptr, y_ptr, inverse_ptr, after_ptr, cu_seqlens_ptr,
    T, H, c0, c1, c2, epsilon, x_strides, z_strides, u_strides,
    K: tl.constexpr, V: tl.constexpr, R: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_ONE: tl.constexpr, HAS_LINEAR: tl.constexpr,
    HAS_SQUARE: tl.constexpr, NORMALIZE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_V columns of a head's state: y_i = sum_j p(x_i.z_j) u_j, j up to i.

    Forward this is y from x, z, u = q, k, v, divided by its normaliser. REVERSE, with j from i on, it is dv from k, q
    and dy times each token's factor, and the state is the gradient of what the forward walk ends with.
    """
    V_BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    DIVIDES: tl.constexpr = NORMALIZE and not REVERSE
    FIRST_LINEAR: tl.constexpr = HAS_ONE
    FIRST_SQUARE: tl.constexpr = HAS_ONE + HAS_LINEAR * K
    block, h = tl.program_id(0) % V_BLOCKS, (tl.program_id(0) // V_BLOCKS % H).to(tl.int64)
    sequence = (tl.program_id(0) // V_BLOCKS // H).to(tl.int64)
    row, begin, end = _span_of(sequence, T, cu_seqlens_ptr)
    offs_t, offs_k, offs_v = tl.arange(0, BLOCK_T), tl.arange(0, GROUP), block * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_v = offs_v < V
    x_ptr += row * x_strides[0] + h * x_strides[2]
    z_ptr += row * z_strides[0] + h * z_strides[2]
    u_ptr += row * u_strides[0] + h * u_strides[2]
    factor_ptr += row * T * H + h
    if REVERSE:
        write0, write1, write2 = c0, c1, c2
        read0, read1, read2 = 1.0, 1.0, 1.0
    else:
        write0, write1, write2 = 1.0, 1.0, 1.0
        read0, read1, read2 = c0, c1, c2

    squares = tl.zeros((GROUP * GROUP, BLOCK_V), tl.float32)
    linear = tl.zeros((GROUP, BLOCK_V), tl.float32)
    one = tl.zeros((BLOCK_V,), tl.float32)
    squares_last = tl.zeros((GROUP, GROUP), tl.float32)
    linear_last = tl.zeros((GROUP,), tl.float32)
    one_last = 0.0
    rows, exists, share = _places(offs_k, offs_k, K, FIRST_SQUARE, REVERSE)
    square_place = flat(rows)[:, None] * W + offs_v[None, :]
    square_mask = flat(exists)[:, None] & mask_v[None, :]
    linear_place = (FIRST_LINEAR + offs_k)[:, None] * W + offs_v[None, :]
    linear_mask = (offs_k < K)[:, None] & mask_v[None, :]
    if first_ptr is not None:
        first_ptr += (sequence * H + h) * R * W
        if HAS_SQUARE:
            squares += flat(share)[:, None] * tl.load(first_ptr + square_place, mask=square_mask, other=0.0)
            if DIVIDES:
                squares_last += tl.load(first_ptr + rows * W + V, mask=exists, other=0.0)
        if HAS_LINEAR:
            linear += tl.load(first_ptr + linear_place, mask=linear_mask, other=0.0)
            if DIVIDES:
                linear_last += tl.load(first_ptr + (FIRST_LINEAR + offs_k) * W + V, mask=offs_k < K, other=0.0)
        if HAS_ONE:
            one += tl.load(first_ptr + offs_v, mask=mask_v, other=0.0)
            if DIVIDES:
                one_last += tl.load(first_ptr + V)

    num_chunks = tl.cdiv(end - begin, BLOCK_T)
    for step in range(num_chunks):
        start = begin + (num_chunks - 1 - step if REVERSE else step) * BLOCK_T
        x = load_tokens(x_ptr, start, end, x_strides[1], offs_k, K, BLOCK_T)
        z = load_tokens_transposed(z_ptr, start, end, z_strides[1], offs_k, K, BLOCK_T)  # (GROUP, BLOCK_T)
        u = load_values(
            u_ptr, start, end, u_strides[1], offs_v, factor_ptr, H, V, BLOCK_T, NORMALIZE and REVERSE, OPERAND
        )
        mask_t = start + offs_t < end
        seen = offs_t[:, None] <= offs_t[None, :] if REVERSE else offs_t[:, None] >= offs_t[None, :]
        s = tl.dot(x.to(OPERAND), z.to(OPERAND), input_precision=PRECISION)  # (BLOCK_T, BLOCK_T)
        p = tl.where(seen & mask_t[None, :], c0 + s * (c1 + c2 * s), 0.0)
        y = tl.dot(p.to(OPERAND), u, input_precision=PRECISION)
        if HAS_ONE:
            y += read0 * one[None, :]
        if HAS_LINEAR:
            y = tl.dot(x.to(OPERAND), (read1 * linear).to(OPERAND), y, input_precision=PRECISION)
        if HAS_SQUARE:
            y = tl.dot(outer(x, x, OPERAND), (read2 * squares).to(OPERAND), y, input_precision=PRECISION)
        if DIVIDES:
            wide = x.to(tl.float32)
            right = tl.dot(wide, c2 * squares_last, input_precision=PRECISION) + c1 * linear_last[None, :]
            normaliser = tl.sum(p, axis=1) + tl.sum(right * wide, axis=1) + c0 * one_last + epsilon
            inverse = 1.0 / normaliser
            y *= inverse[:, None]
            inverse_place = inverse_ptr + ((row * T + start + offs_t) * H + h)
            tl.store(inverse_place, inverse, mask=mask_t & (block == 0))
            wide = z.to(tl.float32)
            squares_last = tl.dot(wide, tl.trans(wide), squares_last, input_precision=PRECISION)
            linear_last += tl.sum(wide, axis=1)
            one_last += tl.sum(mask_t.to(tl.float32), axis=0)
        place = y_ptr + ((row * T + start + offs_t) * H + h)[:, None] * V + offs_v[None, :]
        tl.store(place, y.to(y_ptr.dtype.element_ty), mask=mask_t[:, None] & mask_v[None, :])
        if HAS_SQUARE:
            products = outer_transposed(write2 * z.to(tl.float32), z, OPERAND)  # (GROUP * GROUP, BLOCK_T)
            squares = tl.dot(products, u, squares, input_precision=PRECISION)
        if HAS_LINEAR:
            linear = tl.dot((write1 * z.to(tl.float32)).to(OPERAND), u, linear, input_precision=PRECISION)
        if HAS_ONE:
            one += write0 * tl.sum(u.to(tl.float32), axis=0)

    if after_ptr is not None:
        after_ptr += (sequence * H + h) * R * W
        kept = offs_k[:, None] <= offs_k[None, :]  # of the two places of a product
        if HAS_SQUARE:
            tl.store(after_ptr + square_place, squares / flat(share)[:, None], mask=square_mask & flat(kept)[:, None])
            if DIVIDES:
                tl.store(after_ptr + rows * W + V, squares_last, mask=exists & kept & (block == 0))
        if HAS_LINEAR:
            tl.store(after_ptr + linear_place, linear, mask=linear_mask)
            if DIVIDES:
                mask = (offs_k < K) & (block == 0)
                tl.store(after_ptr + (FIRST_LINEAR + offs_k) * W + V, linear_last, mask=mask)
        if HAS_ONE:
            tl.store(after_ptr + offs_v, one, mask=mask_v)
            if DIVIDES:
                tl.store(after_ptr + V, one_last, mask=block == 0)


@triton.jit
def polynomial_attention_bwd_walk_kernel(
    x_ptr, z_ptr, u_ptr, w_ptr, y_ptr, factor_ptr, last_ptr, first_ptr, dx_ptr, after_ptr, cu_seqlens_ptr,
    T, H, tokens, c0, c1, c2, x_strides, z_strides, u_strides, w_strides,
    K: tl.constexpr, V: tl.constexpr, R: tl.constexpr, W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_I: tl.constexpr,
    BLOCK_V: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, HAS_ONE: tl.constexpr,
    HAS_LINEAR: tl.constexpr, HAS_SQUARE: tl.constexpr, NORMALIZE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """One program gives dims i of dx, BLOCK_I of them: it owns the products x_i x_j, all j, of a head's state.

    Of more than BLOCK_V columns of v it gives what its own add to dx: with other programs' of all `tokens`, dx is a sum
    of parts. So are the gradients of the normalisers then, forward in time; REVERSE they are read, by the first part.

    Forward in time this is dq (x, z = q, k; u, w = dy, v), and it leaves the gradient of each token's normaliser at
    last_ptr; REVERSE, it is dk (x, z = k, q; u, w = v, dy), and leaves the column of the state's gradient that stands
    beside those of v. Each token's factor stands with dy. All dims of dx are formed, the program's own are right.
    """
    I_BLOCKS: tl.constexpr = (K + BLOCK_I - 1) // BLOCK_I
    FIRST_LINEAR: tl.constexpr = HAS_ONE
    FIRST_SQUARE: tl.constexpr = HAS_ONE + HAS_LINEAR * K
    PARTS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    block, part = tl.program_id(0) % I_BLOCKS, tl.program_id(0) // I_BLOCKS % PARTS
    row_of_heads = tl.program_id(0) // (I_BLOCKS * PARTS)
    h, sequence = (row_of_heads % H).to(tl.int64), (row_of_heads // H).to(tl.int64)
    row, begin, end = _span_of(sequence, T, cu_seqlens_ptr)
    offs_t, offs_k, offs_v = tl.arange(0, BLOCK_T), tl.arange(0, GROUP), part * BLOCK_V + tl.arange(0, BLOCK_V)
    offs_i, mask_v = block * BLOCK_I + tl.arange(0, BLOCK_I), offs_v < V
    x_ptr += row * x_strides[0] + h * x_strides[2]
    z_ptr += row * z_strides[0] + h * z_strides[2]
    u_ptr += row * u_strides[0] + h * u_strides[2]
    w_ptr += row * w_strides[0] + h * w_strides[2]
    factor_ptr += row * T * H + h
    last_ptr += row * T * H + h
    before = part.to(tl.int64) * tokens * H  # in the arrays of parts
    dx_ptr += before * K
    if not REVERSE:
        last_ptr += before
    once = (part == 0).to(tl.float32)  # what does not depend on v is added by one program
    if REVERSE:
        write0, write1, write2 = c0, c1, c2
        read1, read2 = 1.0, 1.0
    else:
        write0, write1, write2 = 1.0, 1.0, 1.0
        read1, read2 = c1, c2

    squares = tl.zeros((BLOCK_V, BLOCK_I * GROUP), tl.float32)
    linear = tl.zeros((BLOCK_V, GROUP), tl.float32)
    squares_last = tl.zeros((GROUP, GROUP), tl.float32)
    linear_last = tl.zeros((GROUP,), tl.float32)
    one_last = 0.0
    all_rows, all_exist, all_share = _places(offs_k, offs_k, K, FIRST_SQUARE, REVERSE)
    if first_ptr is not None:
        first_ptr += (sequence * H + h) * R * W
        if HAS_SQUARE:
            rows, exists, share = _places(offs_i, offs_k, K, FIRST_SQUARE, REVERSE)
            offs = flat(rows)[None, :] * W + offs_v[:, None]
            mask = flat(exists)[None, :] & mask_v[:, None]
            squares += flat(share)[None, :] * tl.load(first_ptr + offs, mask=mask, other=0.0)
            if NORMALIZE:
                squares_last += all_share * tl.load(first_ptr + all_rows * W + V, mask=all_exist, other=0.0)
        if HAS_LINEAR:
            offs = (FIRST_LINEAR + offs_k)[None, :] * W + offs_v[:, None]
            linear += tl.load(first_ptr + offs, mask=(offs_k < K)[None, :] & mask_v[:, None], other=0.0)
            if NORMALIZE:
                linear_last += tl.load(first_ptr + (FIRST_LINEAR + offs_k) * W + V, mask=offs_k < K, other=0.0)
        if HAS_ONE and NORMALIZE:
            one_last += tl.load(first_ptr + V)
    # (BLOCK_I * GROUP, GROUP): adds what belongs to x_i x_j, over all j, to column i.
    products = tl.arange(0, BLOCK_I * GROUP)
    sums_j = (block * BLOCK_I + products[:, None] // GROUP == offs_k[None, :]).to(OPERAND)

    num_chunks = tl.cdiv(end - begin, BLOCK_T)
    for step in range(num_chunks):
        start = begin + (num_chunks - 1 - step if REVERSE else step) * BLOCK_T
        mask_t = start + offs_t < end
        x = load_tokens(x_ptr, start, end, x_strides[1], offs_k, K, BLOCK_T)
        z = load_tokens(z_ptr, start, end, z_strides[1], offs_k, K, BLOCK_T)
        u = load_values(
            u_ptr, start, end, u_strides[1], offs_v, factor_ptr, H, V, BLOCK_T, NORMALIZE and not REVERSE, OPERAND
        )
        w = load_values(
            w_ptr, start, end, w_strides[1], offs_v, factor_ptr, H, V, BLOCK_T, NORMALIZE and REVERSE, OPERAND
        )
        s = tl.dot(x.to(OPERAND), tl.trans(z).to(OPERAND), input_precision=PRECISION)  # (BLOCK_T, BLOCK_T)
        dp = tl.dot(u, tl.trans(w), input_precision=PRECISION)
        if NORMALIZE:
            if REVERSE:
                dnormaliser = load_scalars(last_ptr, start, end, H, BLOCK_T)
                dp += once * dnormaliser[None, :]
            else:
                place = y_ptr + ((row * T + start + offs_t) * H + h)[:, None] * V + offs_v[None, :]
                y = tl.load(place, mask=mask_t[:, None] & mask_v[None, :], other=0.0)
                dnormaliser = -tl.sum(u.to(tl.float32) * y.to(tl.float32), axis=1)
                tl.store(last_ptr + (start + offs_t) * H, dnormaliser, mask=mask_t & (block == 0))
                dp += dnormaliser[:, None]
        seen = offs_t[:, None] <= offs_t[None, :] if REVERSE else offs_t[:, None] >= offs_t[None, :]
        ds = tl.where(seen, dp * (c1 + 2 * c2 * s), 0.0)
        dx = tl.dot(ds.to(OPERAND), z.to(OPERAND), input_precision=PRECISION)  # (BLOCK_T, GROUP)
        if HAS_LINEAR:
            dx = tl.dot(u, (read1 * linear).to(OPERAND), dx, input_precision=PRECISION)
        if HAS_SQUARE:
            dfeatures = tl.dot(u, (read2 * squares).to(OPERAND), input_precision=PRECISION)
            xj = tl.broadcast_to((2.0 * x.to(tl.float32))[:, None, :], (BLOCK_T, BLOCK_I, GROUP))
            dfeatures *= tl.reshape(xj, (BLOCK_T, BLOCK_I * GROUP))
            dx = tl.dot(dfeatures.to(OPERAND), sums_j, dx, input_precision=PRECISION)
        if NORMALIZE:
            of_last = read1 * linear_last[None, :]
            if HAS_SQUARE:
                of_last += tl.dot(x.to(tl.float32), 2.0 * read2 * squares_last, input_precision=PRECISION)
            dx += once * of_last if REVERSE else dnormaliser[:, None] * of_last
            last = write2 * load_last(last_ptr, start, end, H, BLOCK_T, REVERSE)
            wide = z.to(tl.float32)
            if HAS_SQUARE:
                left = tl.trans(wide * last[:, None])
                squares_last = tl.dot(left, wide, squares_last, input_precision=PRECISION)
            last = load_last(last_ptr, start, end, H, BLOCK_T, REVERSE)
            linear_last += write1 * tl.sum(wide * last[:, None], axis=0)
            one_last += write0 * tl.sum(last, axis=0)
        place = dx_ptr + ((row * T + start + offs_t) * H + h)[:, None] * K + offs_k[None, :]
        mine = (offs_k // BLOCK_I == block) & (offs_k < K)
        tl.store(place, dx.to(dx_ptr.dtype.element_ty), mask=mask_t[:, None] & mine[None, :])
        if HAS_SQUARE:
            zi = load_tokens(z_ptr, start, end, z_strides[1], offs_i, K, BLOCK_T)
            features = outer(write2 * zi.to(tl.float32), z, OPERAND)  # (BLOCK_T, BLOCK_I * GROUP)
            squares = tl.dot(tl.trans(w), features, squares, input_precision=PRECISION)
        if HAS_LINEAR:
            linear = tl.dot(tl.trans(w), (write1 * z.to(tl.float32)).to(OPERAND), linear, input_precision=PRECISION)

    if NORMALIZE and after_ptr is not None:
        after_ptr += (sequence * H + h) * R * W + V
        if HAS_SQUARE:
            kept = (offs_k[:, None] <= offs_k[None, :]) & all_exist & (block == 0) & (part == 0)
            tl.store(after_ptr + all_rows * W, squares_last / all_share, mask=kept)
        if HAS_LINEAR:
            mask = (offs_k < K) & (block == 0) & (part == 0)
            tl.store(after_ptr + (FIRST_LINEAR + offs_k) * W, linear_last, mask=mask)
        if HAS_ONE:
            tl.store(after_ptr, one_last, mask=(block == 0) & (part == 0))


class Walks:
    """One call of the op whose keys have at most GROUP dims."""

    @staticmethod
    def serve(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> bool:
        """Whether walks have work for the whole GPU: a segmented form is for few heads, and for wide keys."""
        if q.shape[3] > GROUP.value:
            return False
        n = q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        return fills(n * q.shape[2] * triton.cdiv(v.shape[3], _block_v(q, v)))

    def __init__(self, q: Tensor, v: Tensor, cu_seqlens: Tensor | None, polynomial: tuple[float, float, float],
                 coefficients: list[float], normalize: bool, r: int, operand: tl.dtype, precision: str):  # fmt: skip
        (self.b, self.t, self.h, d), width = q.shape, v.shape[3]
        self.n = self.b if cu_seqlens is None else len(cu_seqlens) - 1
        self.cu_seqlens, self.polynomial, self.like = cu_seqlens, polynomial, (q, v)
        self.constants = dict(
            K=d, V=width, R=r, W=width + normalize, OPERAND=operand, PRECISION=precision,
            HAS_ONE=coefficients[0] != 0, HAS_LINEAR=coefficients[1] != 0, HAS_SQUARE=coefficients[2] != 0,
            NORMALIZE=normalize,
        )  # fmt: skip

    def values(self, x, z, u, factor, first, y, inverse, after, *, reverse: bool) -> None:
        """Fill y and, unless it is None, the state `after` the last token; REVERSE leaves out its last column."""
        q, v = self.like
        config = dict(WALK.pick(q.dtype, v.shape[3])) | {"BLOCK_V": _block_v(q, v)}
        blocks = triton.cdiv(v.shape[3], config["BLOCK_V"])
        polynomial_attention_walk_kernel[(self.n * self.h * blocks,)](
            x, z, u, factor, first, y, inverse, after, self.cu_seqlens, self.t, self.h, *self.polynomial, EPSILON,
            x.stride()[:3], z.stride()[:3], u.stride()[:3], REVERSE=reverse, **self.constants, **config,
        )  # fmt: skip

    def gradient(self, x, z, u, w, y, factor, last, first, after, *, reverse: bool) -> Tensor:
        """dx; forward it fills `last`, the gradients of the normalisers, REVERSE the last column of `after`."""
        q, v = self.like
        config = BWD_WALK.pick(q.dtype, v.shape[3])
        config = config | {"BLOCK_V": _at_most(config["BLOCK_V"], v)}
        parts, blocks = triton.cdiv(v.shape[3], config["BLOCK_V"]), triton.cdiv(q.shape[3], config["BLOCK_I"])
        if parts == 1:
            dx, lasts = torch.empty_like(x, memory_format=torch.contiguous_format), last
        else:
            dx = x.new_empty(parts, *x.shape, dtype=torch.float32)
            lasts = last if reverse else last.new_empty(parts, *last.shape)
        polynomial_attention_bwd_walk_kernel[(self.n * self.h * parts * blocks,)](
            x, z, u, w, y, factor, lasts, first, dx, after, self.cu_seqlens, self.t, self.h, self.b * self.t,
            *self.polynomial, x.stride()[:3], z.stride()[:3], u.stride()[:3], w.stride()[:3], REVERSE=reverse,
            **self.constants, **config,
        )  # fmt: skip
        if parts > 1:
            dx = dx.sum(0).to(x.dtype)
            if not reverse:
                torch.sum(lasts, 0, out=last)
        return dx


def _block_v(q: Tensor, v: Tensor) -> int:
    return _at_most(WALK.pick(q.dtype, v.shape[3])["BLOCK_V"], v)


def _at_most(block: int, v: Tensor) -> int:
    """A block of columns, not much wider than v."""
    return min(block, max(16, triton.next_power_of_2(v.shape[3])))
