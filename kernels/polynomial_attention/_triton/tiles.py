"""What the kernels share: where a program's tokens lie, and how tiles of tokens, features and states are loaded."""

import triton
import triton.language as tl


@triton.jit
def locate(unit, T, per_sequence, UNIT: tl.constexpr, owners_ptr, firsts_ptr, cu_seqlens_ptr, PACKED: tl.constexpr):
    """(sequence, row of the batch, first token of the sequence, its end, first token) of a unit of UNIT tokens.

    With packing there may be more units than needed: such a unit begins at or past the end of its sequence.
    """
    if PACKED:
        sequence = tl.load(owners_ptr + unit)
        begin = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
        end = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)
        start = begin + (unit - tl.load(firsts_ptr + sequence)) * UNIT
        row = sequence * 0
    else:
        sequence = (unit // per_sequence).to(tl.int64)
        begin = sequence * 0
        end = begin + T
        start = begin + (unit % per_sequence) * UNIT
        row = sequence
    return sequence, row, begin, end, start


@triton.jit
def own_segment(
    sequence, begin, end, start, segments_per_sequence, segment_firsts_ptr, SEGMENT: tl.constexpr, PACKED: tl.constexpr
):
    """(segment in which `start` lies, its first token, its end)."""
    index = (start - begin) // SEGMENT
    first = begin + index * SEGMENT
    segment = index + sequence * segments_per_sequence
    if PACKED:
        segment = index + tl.load(segment_firsts_ptr + sequence)
    return segment, first, tl.minimum(end, first + SEGMENT)


@triton.jit
def load_tokens(ptr, start, end, stride, columns, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """(BLOCK_T, columns) of the tokens from `start`; 0 past `end` and past WIDTH."""
    offs_t = tl.arange(0, BLOCK_T)
    mask = (start + offs_t < end)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(ptr + start * stride + offs_t[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_tokens_transposed(ptr, start, end, stride, columns, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr):
    """(columns, BLOCK_T), see `load_tokens`."""
    offs_t = tl.arange(0, BLOCK_T)
    mask = (columns < WIDTH)[:, None] & (start + offs_t < end)[None, :]
    return tl.load(ptr + start * stride + columns[:, None] + offs_t[None, :] * stride, mask=mask, other=0.0)


@triton.jit
def load_scalars(ptr, start, end, stride, BLOCK_T: tl.constexpr):
    """(BLOCK_T,) one number for each token; 0 past `end`."""
    offs_t = tl.arange(0, BLOCK_T)
    return tl.load(ptr + start * stride + offs_t * stride, mask=start + offs_t < end, other=0.0)


@triton.jit
def load_values(
    ptr, start, end, stride, columns, factor_ptr, factor_stride, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr,
    SCALED: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """(BLOCK_T, columns) of v, or of dy times each token's factor, as an operand of a product."""
    values = load_tokens(ptr, start, end, stride, columns, WIDTH, BLOCK_T)
    if SCALED:
        values = values.to(tl.float32) * load_scalars(factor_ptr, start, end, factor_stride, BLOCK_T)[:, None]
    return values.to(OPERAND)


@triton.jit
def load_last(ptr, start, end, stride, BLOCK_T: tl.constexpr, IS_GRADIENT: tl.constexpr):
    """(BLOCK_T,) the column that normalisation adds: ones beside v, the gradient of the normaliser beside dy."""
    if IS_GRADIENT:
        return load_scalars(ptr, start, end, stride, BLOCK_T)
    return tl.where(start + tl.arange(0, BLOCK_T) < end, 1.0, 0.0)


@triton.jit
def product_rows(i, j, K: tl.constexpr, FIRST: tl.constexpr):
    """(i, j) rows of the state where x_i x_j stand; what lies outside of K x K is for the caller to mask."""
    low, high = tl.minimum(i[:, None], j[None, :]), tl.maximum(i[:, None], j[None, :])
    return FIRST + low * K - low * (low - 1) // 2 + high - low


@triton.jit
def flat(x):
    """(i, j) -> (i j,)."""
    return tl.reshape(x, (x.shape[0] * x.shape[1],))


@triton.jit
def outer(a, b, OPERAND: tl.constexpr):
    """(n, i), (n, j) -> (n, i j), all products a_i b_j of a token."""
    products = (a.to(tl.float32)[:, :, None] * b.to(tl.float32)[:, None, :]).to(OPERAND)
    return tl.reshape(products, (a.shape[0], a.shape[1] * b.shape[1]))


@triton.jit
def outer_transposed(a, b, OPERAND: tl.constexpr):
    """(i, n), (j, n) -> (i j, n)."""
    products = (a.to(tl.float32)[:, None, :] * b.to(tl.float32)[None, :, :]).to(OPERAND)
    return tl.reshape(products, (a.shape[0] * b.shape[0], a.shape[1]))
