"""Where a chunk of a sequence is, for programs that take one each, and the weights between its tokens."""

import triton
import triton.language as tl

from ._levels import weights_by_channel
from ._tiles import dot, fade, fade_between, tile


@triton.jit
def locate_chunk(seqlens_ptr, num_sequences, T, H, BLOCK_T: tl.constexpr):
    """Of this program: slot, head, row of the batch, its first token there, tokens, first token of the chunk.

    Packed sequence i owns the slots from cu_seqlens[i] // BLOCK_T + i on: at least one, and never fewer than its
    chunks. So the host knows the number of slots without looking at the borders; a few find nothing to do.
    """
    head = (tl.program_id(0) % H).to(tl.int64)
    slot = (tl.program_id(0) // H).to(tl.int64)
    if seqlens_ptr is not None:
        sequence = 0
        beyond = num_sequences
        while beyond - sequence > 1:
            middle = (sequence + beyond) // 2
            if tl.load(seqlens_ptr + middle).to(tl.int64) // BLOCK_T + middle <= slot:
                sequence = middle
            else:
                beyond = middle
        first = tl.load(seqlens_ptr + sequence).to(tl.int64)
        length = tl.load(seqlens_ptr + sequence + 1) - first
        row = slot * 0
        start = (slot - first // BLOCK_T - sequence) * BLOCK_T
    else:
        chunks = tl.cdiv(T, BLOCK_T)
        row = slot // chunks
        first = slot * 0
        length = first + T
        start = slot % chunks * BLOCK_T
    return slot, head, row, first, length, start


@triton.jit
def first_slot(seqlens_ptr, sequence, first, T, BLOCK_T: tl.constexpr):
    """That of the first chunk of a sequence."""
    if seqlens_ptr is not None:
        return first // BLOCK_T + sequence
    else:
        return sequence * tl.cdiv(T, BLOCK_T)


@triton.jit
def load_fade(gate_rows, mask_t, offs_k, mask_k, BY_CHANNEL: tl.constexpr):
    """See `fade`: (BLOCK_T,) and numbers, or (BLOCK_T, BLOCK_K) and (BLOCK_K,)."""
    if BY_CHANNEL:
        return fade(tile(gate_rows, mask_t, offs_k, mask_k))
    else:
        return fade(tl.load(gate_rows, mask=mask_t, other=0.0))


@triton.jit
def weights_between(
    q, k, coarse, fine, offs_t, seen, LEVELS: tl.constexpr, FADES: tl.constexpr, BY_CHANNEL: tl.constexpr
):  # fmt: skip
    """Of the later rows of q on the earlier ones of k that are `seen`, (BLOCK_T, BLOCK_T), unscaled."""
    if BY_CHANNEL:
        weights = weights_by_channel(q, k, coarse, fine, offs_t, LEVELS)
    else:
        weights = dot(q, tl.trans(k))
        if FADES:
            weights *= fade_between(coarse, fine, seen)
    return tl.where(seen, weights, 0.0)
