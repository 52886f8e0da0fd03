"""What the tokens of a chunk have to do with each other, for all chunks side by side."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._chunks import load_fade, locate_chunk, weights_between
from ..._levels import late_and_early
from ..._tiles import chunk_of, power_of_two, precision, rows, strides_of, tile
from ._configs import PAIRS, kind_of


@triton.jit(do_not_specialize=["num_sequences"])
def delta_rule_pairs_kernel(
    q_ptr, k_ptr, beta_ptr, gate_ptr, inverse_ptr, scores_ptr, seqlens_ptr,
    q_strides, k_strides, beta_strides, gate_strides, scale, num_sequences, T, H, K: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr, BY_CHANNEL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: of a chunk of a head U, the inverse of I + weight beta, and the weights of q on k if asked for.

    The chunk is halved again and again. Where both halves of a run are inverted, X, and B holds their weights on each
    other, late on early, the run's inverse is X - X B X: exact, for B X B = 0.
    """
    slot, head, row, first, length, start = locate_chunk(seqlens_ptr, num_sequences, T, H, BLOCK_T)
    if start >= length:
        return
    offs_t, offs_k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    mask_t, mask_k = start + offs_t < length, offs_k < K
    offs_square = (slot * H + head) * BLOCK_T * BLOCK_T + offs_t[:, None] * BLOCK_T + offs_t[None, :]
    token = first + start
    k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    coarse, fine = 0.0, 0.0
    if gate_ptr is not None:
        gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
        coarse, fine, _, _ = load_fade(gate_rows, mask_t, offs_k, mask_k, BY_CHANNEL)
    if scores_ptr is not None:
        q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        seen = offs_t[:, None] >= offs_t[None, :]
        scores = weights_between(q, k, coarse, fine, offs_t, seen, LEVELS, gate_ptr is not None, BY_CHANNEL) * scale
        tl.store(scores_ptr + offs_square, scores.to(scores_ptr.dtype.element_ty))
    if inverse_ptr is not None:
        beta = tl.load(rows(beta_ptr, beta_strides, row, token, head, offs_t), mask=mask_t, other=0.0).to(tl.float32)
        earlier = offs_t[:, None] > offs_t[None, :]
        weights = weights_between(k, k, coarse, fine, offs_t, earlier, LEVELS, gate_ptr is not None, BY_CHANNEL)
        weights *= beta[None, :]
        inverse = tl.where(late_and_early(offs_t, 1), -weights, 0.0)
        inverse += tl.where(offs_t[:, None] == offs_t[None, :], 1.0, 0.0)
        for level in tl.static_range(1, LEVELS):
            below = tl.where(late_and_early(offs_t, 1 << level), weights, 0.0)
            crossed = tl.dot(inverse, below, input_precision=PRECISION)
            inverse -= tl.dot(crossed, inverse, input_precision=PRECISION)
        tl.store(inverse_ptr + offs_square, inverse.to(inverse_ptr.dtype.element_ty))


def num_slots(b: int, t: int, cu_seqlens: Tensor | None, chunk: int) -> int:
    """Chunks of all sequences, and a few of which nothing is used where they are packed: see `locate_chunk`."""
    return b * triton.cdiv(t, chunk) if cu_seqlens is None else t // chunk + cu_seqlens.shape[0] - 1


def run_pairs(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, cu_seqlens: Tensor | None, scale: float,
    *, scored: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """U and, if `scored`, the weights of q on k times `scale`; each (slots, h, chunk, chunk) in k's dtype."""
    b, t, h, width = k.shape
    kind = kind_of(log_decay)
    config = dict(PAIRS[kind].pick(k.dtype, max(width, v.shape[-1])))
    chunk = chunk_of(config.pop("BLOCK_T"), t)
    slots = num_slots(b, t, cu_seqlens, chunk)
    inverse = k.new_empty(slots, h, chunk, chunk)
    scores = torch.empty_like(inverse) if scored else None
    delta_rule_pairs_kernel[(slots * h,)](
        q if scored else None, k, beta, log_decay, inverse, scores, cu_seqlens,
        *strides_of(q, k, beta, log_decay), scale, b if cu_seqlens is None else len(cu_seqlens) - 1, t, h, width,
        BLOCK_T=chunk, BLOCK_K=power_of_two(width), LEVELS=chunk.bit_length() - 1, BY_CHANNEL=kind == "channel",
        PRECISION=precision() if k.element_size() == 2 else "ieee", **config,
    )  # fmt: skip
    return inverse, scores
