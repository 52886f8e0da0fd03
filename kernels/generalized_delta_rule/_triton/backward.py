"""The gradients: of the memory along time, then of everything else for all chunks side by side.

The memory has two readers, q with the gradient dy and a with the gradient of what U is applied to, and two writers,
k with the values v and b with the values F.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._chunks import first_slot, locate_chunk
from ..._levels import border_factor, late_and_early
from ..._tiles import dot, fade, locate, power_of_two, rows, since_start, strides_of, tile, times, until_end
from ._configs import BACKWARD_CHUNK, BACKWARD_WALK
from ._fades import load_fades
from .pairs import run_pairs
from .walk import run_walk


@triton.jit
def generalized_delta_rule_bwd_walk_kernel(
    q_ptr, k_ptr, a_ptr, b_ptr, gate_ptr, inverse_ptr, heard_ptr, scores_ptr, echoes_ptr, dy_ptr,
    dasked_ptr, dv_ptr, dstates_ptr, dend_ptr, dstart_ptr, seqlens_ptr,
    q_strides, k_strides, a_strides, b_strides, gate_strides, dy_strides, scale,
    T, H, K: tl.constexpr, V: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program: a head and BLOCK_V columns of the memory's gradient, backward in time.

    It writes dv, the gradient of what U is applied to, and that of the memory after each chunk.
    """
    block, head, sequence, row, first, length, _ = locate(seqlens_ptr, T, H, T, tl.cdiv(V, BLOCK_V))
    offs_t, offs_k, offs_v = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K), block * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_k, mask_v = offs_k < K, offs_v < V
    offs_square = offs_t[:, None] * BLOCK_T + offs_t[None, :]
    offs_memory = offs_k[:, None] * V + offs_v[None, :]
    mask_memory = mask_k[:, None] & mask_v[None, :]
    dmemory = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    if dend_ptr is not None:
        dend_ptr += (sequence * H + head) * K * V
        dmemory += tl.load(dend_ptr + offs_memory, mask=mask_memory, other=0.0).to(tl.float32)

    chunks = tl.cdiv(length, BLOCK_T)
    slot = (first_slot(seqlens_ptr, sequence, first, T, BLOCK_T) + chunks - 1) * H + head
    for step in range(chunks):
        start = (chunks - 1 - step) * BLOCK_T
        mask_t = start + offs_t < length
        token = first + start
        offs_tile = ((row * T + token) * H + head) * V + (offs_t * (H * V))[:, None] + offs_v[None, :]
        mask_tile = mask_t[:, None] & mask_v[None, :]
        dstate = dmemory.to(dstates_ptr.dtype.element_ty)
        tl.store(dstates_ptr + slot * K * V + offs_memory, dstate, mask=mask_memory)
        dy = tile(rows(dy_ptr, dy_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
        gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
        coarse, fine, coarse_before, fine_before, all_coarse, all_fine = load_fades(gate_rows, mask_t, offs_k, mask_k)
        left = until_end(coarse, fine, all_coarse[None, :], all_fine[None, :])
        square = slot * BLOCK_T * BLOCK_T + offs_square
        b = tile(rows(b_ptr, b_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        danswers = dot(times(b, left), dmemory)
        danswers = dot(tl.trans(tl.load(echoes_ptr + square)), dy, danswers)
        inverse = tl.load(inverse_ptr + square)
        dasked = dot(tl.trans(inverse), danswers.to(inverse.dtype)).to(dasked_ptr.dtype.element_ty)
        tl.store(dasked_ptr + offs_tile, dasked, mask=mask_tile)
        k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        dv = dot(times(k, left), dmemory)
        dv = dot(tl.trans(tl.load(scores_ptr + square)), dy, dv)
        dv = dot(tl.trans(tl.load(heard_ptr + square)), dasked, dv)
        tl.store(dv_ptr + offs_tile, dv.to(dv_ptr.dtype.element_ty), mask=mask_tile)
        q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        a = tile(rows(a_ptr, a_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        dmemory *= since_start(all_coarse, all_fine)[:, None]
        dmemory = dot(tl.trans(times(q, since_start(coarse, fine) * scale)), dy, dmemory)
        dmemory = dot(tl.trans(times(a, since_start(coarse_before, fine_before))), dasked, dmemory)
        slot -= H

    if dstart_ptr is not None:
        tl.store(dstart_ptr + (sequence * H + head) * K * V + offs_memory, dmemory, mask=mask_memory)


@triton.jit(do_not_specialize=["num_sequences"])
def generalized_delta_rule_bwd_chunk_kernel(
    q_ptr, k_ptr, v_ptr, a_ptr, b_ptr, gate_ptr, dy_ptr, dasked_ptr, answers_ptr, states_ptr, dstates_ptr,
    dq_ptr, dk_ptr, da_ptr, db_ptr, dgate_ptr, seqlens_ptr,
    q_strides, k_strides, v_strides, a_strides, b_strides, gate_strides, dy_strides, scale,
    num_sequences, T, H, K: tl.constexpr, V: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    """One program: a chunk of a head; it takes BLOCK_V columns of the values and memories at a time.

    What token t + 1 asks fades as what token t reads, so asks stand in the row before their own: in each row are two
    readers, and a row's own pairs do not fade. The first token asks before anything has faded.
    """
    slot, head, row, first, length, start = locate_chunk(seqlens_ptr, num_sequences, T, H, BLOCK_T)
    if start >= length:
        return
    offs_t, offs_k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    mask_t, mask_k = start + offs_t < length, offs_k < K
    mask_next = (offs_t + 1 < BLOCK_T) & (start + offs_t + 1 < length)
    token = first + start
    here = (row * T + token) * H + head  # of contiguous tensors; the next token is H further
    slot = slot * H + head

    of_scores = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    of_echoes = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    of_heard = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    of_crossed = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    dq = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    da = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    dk = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    db = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    da_first = tl.zeros((BLOCK_K,), tl.float32)
    passing = tl.zeros((BLOCK_K,), tl.float32)
    for block in range(0, V, BLOCK_V):
        offs_v = block + tl.arange(0, BLOCK_V)
        mask_v = offs_v < V
        mask_tile = mask_t[:, None] & mask_v[None, :]
        offs_tile = here * V + (offs_t * (H * V))[:, None] + offs_v[None, :]
        offs_memory = slot * K * V + offs_k[:, None] * V + offs_v[None, :]
        mask_memory = mask_k[:, None] & mask_v[None, :]
        v = tile(rows(v_ptr, v_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
        dy = tile(rows(dy_ptr, dy_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
        mask_asked = mask_next[:, None] & mask_v[None, :]
        dasked = tl.load(dasked_ptr + offs_tile + H * V, mask=mask_asked, other=0.0)
        dasked_first = tl.load(dasked_ptr + here * V + offs_v, mask=mask_v, other=0.0)
        answers = tl.load(answers_ptr + offs_tile, mask=mask_tile, other=0.0)
        memory = tl.load(states_ptr + offs_memory, mask=mask_memory, other=0.0)
        dafter = tl.load(dstates_ptr + offs_memory, mask=mask_memory, other=0.0)
        of_scores = dot(dy, tl.trans(v), of_scores)
        of_echoes = dot(dy, tl.trans(answers), of_echoes)
        of_heard = dot(dasked, tl.trans(v), of_heard)
        of_crossed = dot(dasked, tl.trans(answers), of_crossed)
        dq = dot(dy, tl.trans(memory), dq)
        da = dot(dasked, tl.trans(memory), da)
        dk = dot(v, tl.trans(dafter), dk)
        db = dot(answers, tl.trans(dafter), db)
        da_first += tl.sum(memory.to(tl.float32) * dasked_first.to(tl.float32)[None, :], 1)
        passing += tl.sum(memory.to(tl.float32) * dafter.to(tl.float32), 1)

    q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    a = tile(rows(a_ptr, a_strides, row, token + 1, head, offs_t), mask_next, offs_k, mask_k)
    b = tile(rows(b_ptr, b_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
    coarse, fine, all_coarse, all_fine = fade(tile(gate_rows, mask_t, offs_k, mask_k))
    read, left = since_start(coarse, fine), until_end(coarse, fine, all_coarse[None, :], all_fine[None, :])
    dq *= read * scale
    da *= read
    dk *= left
    db *= left
    of_scores *= scale
    of_echoes *= scale
    # Of the products of what fades with its gradient: those that fade until here, and those that fade from here on.
    until = q.to(tl.float32) * dq + a.to(tl.float32) * da
    # Without the last token's, which fades no more: beside it, the others' would be lost in the sums.
    after = tl.where(mask_next[:, None], k.to(tl.float32) * dk + b.to(tl.float32) * db, 0.0)
    dgate = tl.cumsum(after, 0) - after + (passing * since_start(all_coarse, all_fine))[None, :]

    itself = offs_t[:, None] == offs_t[None, :]
    score, echo = _diagonal(of_scores, itself), _diagonal(of_echoes, itself)
    hears, crosses = _diagonal(of_heard, itself), _diagonal(of_crossed, itself)
    dq += score * k.to(tl.float32) + echo * b.to(tl.float32)
    da += hears * k.to(tl.float32) + crosses * b.to(tl.float32)
    dk += score * q.to(tl.float32) + hears * a.to(tl.float32)
    db += echo * q.to(tl.float32) + crosses * a.to(tl.float32)
    for level in tl.static_range(LEVELS):
        across = late_and_early(offs_t, 1 << level)
        factor = border_factor(coarse, fine, 1 << level)
        from_scores = tl.where(across, of_scores, 0.0).to(q.dtype)
        from_echoes = tl.where(across, of_echoes, 0.0).to(q.dtype)
        from_heard = tl.where(across, of_heard, 0.0).to(q.dtype)
        from_crossed = tl.where(across, of_crossed, 0.0).to(q.dtype)
        reads, asks, writes, adds = times(q, factor), times(a, factor), times(k, factor), times(b, factor)
        to_q = dot(from_echoes, adds, dot(from_scores, writes))
        until += reads.to(tl.float32) * to_q
        dq += factor * to_q
        to_a = dot(from_crossed, adds, dot(from_heard, writes))
        until += asks.to(tl.float32) * to_a
        da += factor * to_a
        to_k = dot(tl.trans(from_heard), asks, dot(tl.trans(from_scores), reads))
        until -= writes.to(tl.float32) * to_k
        dk += factor * to_k
        to_b = dot(tl.trans(from_crossed), asks, dot(tl.trans(from_echoes), reads))
        until -= adds.to(tl.float32) * to_b
        db += factor * to_b
    dgate += tl.cumsum(until, 0, reverse=True)
    offs_tile = here * K + (offs_t * (H * K))[:, None] + offs_k[None, :]
    mask_tile = mask_t[:, None] & mask_k[None, :]
    tl.store(dgate_ptr + offs_tile, dgate, mask=mask_tile)
    tl.store(dq_ptr + offs_tile, dq.to(dq_ptr.dtype.element_ty), mask=mask_tile)
    tl.store(dk_ptr + offs_tile, dk.to(dk_ptr.dtype.element_ty), mask=mask_tile)
    tl.store(db_ptr + offs_tile, db.to(db_ptr.dtype.element_ty), mask=mask_tile)
    tl.store(da_ptr + here * K + offs_k, da_first.to(da_ptr.dtype.element_ty), mask=mask_k)
    mask_asked = mask_next[:, None] & mask_k[None, :]
    tl.store(da_ptr + offs_tile + H * K, da.to(da_ptr.dtype.element_ty), mask=mask_asked)


@triton.jit
def _diagonal(pairs, itself):
    """(BLOCK_T, 1) of (BLOCK_T, BLOCK_T)."""
    return tl.sum(tl.where(itself, pairs, 0.0), 1)[:, None]


def run_backward(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None,
    cu_seqlens: Tensor | None, dy: Tensor, dmemory: Tensor | None, scale: float,
) -> list[Tensor | None]:  # fmt: skip
    """dq, dk, dv, da, db, dlog_decay and dstate, the last None if there is no state."""
    (num_rows, t, h, key), value = q.shape, v.shape[-1]
    n = num_rows if cu_seqlens is None else len(cu_seqlens) - 1
    pairs = run_pairs(q, k, v, a, b, log_decay, cu_seqlens, scale)
    slots, _, chunk, _ = pairs.inverse.shape
    common = dict(BLOCK_T=chunk, BLOCK_K=power_of_two(key))
    answers, states, dstates = v.new_empty(v.shape), *(v.new_empty(slots, h, key, value) for _ in range(2))
    run_walk(k, v, a, b, log_decay, pairs, state, cu_seqlens, scale, answers=answers, states=states)

    dq, dk, dv, da, db = (x.new_empty(x.shape) for x in (q, k, v, a, b))
    dasked = torch.empty_like(answers)
    dgate = log_decay.new_empty(log_decay.shape, dtype=torch.float32)
    dstate = None if state is None else torch.empty_like(state, dtype=torch.float32)
    config = dict(BACKWARD_WALK.pick(q.dtype, max(key, value)))
    block_v = min(config.pop("BLOCK"), power_of_two(value))
    generalized_delta_rule_bwd_walk_kernel[(n * h * triton.cdiv(value, block_v),)](
        q, k, a, b, log_decay, *pairs, dy, dasked, dv, dstates, dmemory, dstate, cu_seqlens,
        *strides_of(q, k, a, b, log_decay, dy), scale, t, h, key, value, BLOCK_V=block_v, **common, **config,
    )  # fmt: skip
    config = dict(BACKWARD_CHUNK.pick(q.dtype, max(key, value)))
    block_v = min(config.pop("BLOCK"), power_of_two(value))
    generalized_delta_rule_bwd_chunk_kernel[(slots * h,)](
        q, k, v, a, b, log_decay, dy, dasked, answers, states, dstates, dq, dk, da, db, dgate, cu_seqlens,
        *strides_of(q, k, v, a, b, log_decay, dy), scale, n, t, h, key, value,
        BLOCK_V=block_v, LEVELS=chunk.bit_length() - 1, **common, **config,
    )  # fmt: skip
    return [dq, dk, dv, da, db, dgate, dstate]
