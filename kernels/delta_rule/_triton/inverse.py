"""U, the inverse of the unit lower triangular matrix I + weight beta of each chunk, for all chunks side by side."""

import triton
import triton.language as tl
from torch import Tensor

from ..._levels import late_and_early
from ..._tiles import chunk_of, power_of_two, precision, rows, strides_of, tile
from ._chunks import load_fade, locate_chunk, pairs
from ._configs import INVERSE, kind_of


@triton.jit(do_not_specialize=["num_sequences"])
def delta_rule_inverse_kernel(
    k_ptr, beta_ptr, gate_ptr, inverse_ptr, seqlens_ptr, k_strides, beta_strides, gate_strides,
    num_sequences, T, H, K: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr, BY_CHANNEL: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a chunk of a head.

    The chunk is halved again and again. Where both halves of a run are inverted, X, and B holds their weights on each
    other, late on early, the run's inverse is X - X B X: exact, for B X B = 0.
    """
    slot, head, row, first, length, start = locate_chunk(seqlens_ptr, num_sequences, T, H, BLOCK_T)
    if start >= length:
        return
    offs_t, offs_k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    mask_t, mask_k = start + offs_t < length, offs_k < K
    token = first + start
    k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    beta = tl.load(rows(beta_ptr, beta_strides, row, token, head, offs_t), mask=mask_t, other=0.0).to(tl.float32)
    coarse, fine = 0.0, 0.0
    if gate_ptr is not None:
        gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
        coarse, fine, _, _ = load_fade(gate_rows, mask_t, offs_k, mask_k, BY_CHANNEL)
    earlier = offs_t[:, None] > offs_t[None, :]
    weights = pairs(k, k, coarse, fine, offs_t, earlier, LEVELS, gate_ptr is not None, BY_CHANNEL) * beta[None, :]

    inverse = tl.where(late_and_early(offs_t, 1), -weights, 0.0)
    inverse += tl.where(offs_t[:, None] == offs_t[None, :], 1.0, 0.0)
    for level in tl.static_range(1, LEVELS):
        below = tl.where(late_and_early(offs_t, 1 << level), weights, 0.0)
        crossed = tl.dot(inverse, below, input_precision=PRECISION)
        inverse -= tl.dot(crossed, inverse, input_precision=PRECISION)
    inverse_tile = inverse_ptr + (slot * H + head) * BLOCK_T * BLOCK_T + offs_t[:, None] * BLOCK_T + offs_t[None, :]
    tl.store(inverse_tile, inverse.to(inverse_ptr.dtype.element_ty))


def num_slots(b: int, t: int, cu_seqlens: Tensor | None, chunk: int) -> int:
    """Chunks of all sequences, and a few of which nothing is used where they are packed: see `locate_chunk`."""
    return b * triton.cdiv(t, chunk) if cu_seqlens is None else t // chunk + cu_seqlens.shape[0] - 1


def run_inverse(
    k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor | None:
    """(slots, h, chunk, chunk) in k's dtype; None for a single token, of which U is one."""
    b, t, h, width = k.shape
    if t == 1:
        return None
    kind = kind_of(log_decay)
    config = dict(INVERSE[kind].pick(k.dtype, max(width, v.shape[-1])))
    chunk = chunk_of(config.pop("BLOCK_T"), t)
    slots = num_slots(b, t, cu_seqlens, chunk)
    inverse = k.new_empty(slots, h, chunk, chunk)
    delta_rule_inverse_kernel[(slots * h,)](
        k, beta, log_decay, inverse, cu_seqlens, *strides_of(k, beta, log_decay),
        b if cu_seqlens is None else len(cu_seqlens) - 1, t, h, width,
        BLOCK_T=chunk, BLOCK_K=power_of_two(width), LEVELS=chunk.bit_length() - 1, BY_CHANNEL=kind == "channel",
        PRECISION=precision() if k.element_size() == 2 else "ieee", **config,
    )  # fmt: skip
    return inverse


def chunk_size(inverse: Tensor | None) -> int:
    """Tokens of a chunk."""
    return power_of_two(1) if inverse is None else inverse.shape[-1]
