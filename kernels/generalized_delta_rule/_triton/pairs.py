"""What the tokens of a chunk have to do with each other, for all chunks side by side."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..._chunks import locate_chunk
from ..._levels import border_factor, late_and_early
from ..._tiles import chunk_of, dot, power_of_two, precision, rows, strides_of, tile, times
from ._configs import PAIRS
from ._fades import ask_factor, load_fades


class Pairs(NamedTuple):
    """(slots, h, chunk, chunk) each, lower triangular: U; of a on earlier k; of q on k and on b, times scale."""

    inverse: Tensor
    heard: Tensor
    scores: Tensor
    echoes: Tensor


@triton.jit(do_not_specialize=["num_sequences"])
def generalized_delta_rule_pairs_kernel(
    q_ptr, k_ptr, a_ptr, b_ptr, gate_ptr, inverse_ptr, heard_ptr, scores_ptr, echoes_ptr, seqlens_ptr,
    q_strides, k_strides, a_strides, b_strides, gate_strides, scale, num_sequences, T, H, K: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: the weights of a chunk of a head, and U, the inverse of I minus those of a on the earlier b.

    The chunk is halved again and again. Where both halves of a run are inverted, X, and B holds the weights of the
    late half on the early one, the run's inverse is X + X B X: exact, for B X B = 0.
    """
    slot, head, row, first, length, start = locate_chunk(seqlens_ptr, num_sequences, T, H, BLOCK_T)
    if start >= length:
        return
    offs_t, offs_k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    mask_t, mask_k = start + offs_t < length, offs_k < K
    token = first + start
    q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    a = tile(rows(a_ptr, a_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    b = tile(rows(b_ptr, b_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
    coarse, fine, coarse_before, fine_before, _, _ = load_fades(gate_rows, mask_t, offs_k, mask_k)
    itself = offs_t[:, None] == offs_t[None, :]
    scores = tl.where(itself, dot(q, tl.trans(k)), 0.0)
    echoes = tl.where(itself, dot(q, tl.trans(b)), 0.0)
    heard = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    crossed = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    for level in tl.static_range(LEVELS):
        factor = border_factor(coarse, fine, 1 << level)
        asks = times(a, ask_factor(coarse_before, fine_before, 1 << level))
        reads, writes, adds = times(q, factor), tl.trans(times(k, factor)), tl.trans(times(b, factor))
        across = late_and_early(offs_t, 1 << level)
        scores += tl.where(across, dot(reads, writes), 0.0)
        echoes += tl.where(across, dot(reads, adds), 0.0)
        heard += tl.where(across, dot(asks, writes), 0.0)
        crossed += tl.where(across, dot(asks, adds), 0.0)
    offs_square = (slot * H + head) * BLOCK_T * BLOCK_T + offs_t[:, None] * BLOCK_T + offs_t[None, :]
    tl.store(scores_ptr + offs_square, (scores * scale).to(scores_ptr.dtype.element_ty))
    tl.store(echoes_ptr + offs_square, (echoes * scale).to(echoes_ptr.dtype.element_ty))
    tl.store(heard_ptr + offs_square, heard.to(heard_ptr.dtype.element_ty))
    inverse = tl.where(itself, 1.0, 0.0)
    for level in tl.static_range(LEVELS):
        below = tl.where(late_and_early(offs_t, 1 << level), crossed, 0.0)
        if level == 0:
            inverse += below
        else:
            inverse += tl.dot(tl.dot(inverse, below, input_precision=PRECISION), inverse, input_precision=PRECISION)
    tl.store(inverse_ptr + offs_square, inverse.to(inverse_ptr.dtype.element_ty))


def run_pairs(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, cu_seqlens: Tensor | None, scale: float
) -> Pairs:
    """In k's dtype. Packed sequences have a few slots of which nothing is used: see `locate_chunk`."""
    num_rows, t, h, width = k.shape
    config = dict(PAIRS.pick(k.dtype, max(width, v.shape[-1])))
    chunk = chunk_of(config.pop("BLOCK_T"), t)
    n = num_rows if cu_seqlens is None else len(cu_seqlens) - 1
    slots = n * triton.cdiv(t, chunk) if cu_seqlens is None else t // chunk + n
    pairs = Pairs(*(k.new_empty(slots, h, chunk, chunk) for _ in Pairs._fields))
    generalized_delta_rule_pairs_kernel[(slots * h,)](
        q, k, a, b, log_decay, *pairs, cu_seqlens, *strides_of(q, k, a, b, log_decay), scale, n, t, h, width,
        BLOCK_T=chunk, BLOCK_K=power_of_two(width), LEVELS=chunk.bit_length() - 1,
        PRECISION=precision() if k.element_size() == 2 else "ieee", **config,
    )  # fmt: skip
    return pairs
