"""The gradients: of the memory along time, then of everything else for all chunks side by side.

The memory has two readers, q with the gradient dy and k with -dv, and one writer, k with the values beta E.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._chunks import first_slot, load_fade, locate_chunk, weights_between
from ..._levels import border_factor, late_and_early
from ..._tiles import (
    dot,
    fade_between,
    locate,
    power_of_two,
    rows,
    since_start,
    strides_of,
    tile,
    times,
    until_end,
)
from ._configs import BACKWARD_CHUNK, BACKWARD_WALK, kind_of
from .pairs import run_pairs
from .walk import run_walk


@triton.jit
def delta_rule_bwd_walk_kernel(
    q_ptr, k_ptr, beta_ptr, gate_ptr, inverse_ptr, scores_ptr, dy_ptr, dv_ptr, dstates_ptr, dend_ptr, dstart_ptr,
    seqlens_ptr,
    q_strides, k_strides, beta_strides, gate_strides, dy_strides, scale,
    T, H, K: tl.constexpr, V: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BY_CHANNEL: tl.constexpr,
):  # fmt: skip
    """One program: a head and BLOCK_V columns of the memory's gradient, backward in time.

    It writes dv, and the gradient of the memory after each chunk.
    """
    FADES: tl.constexpr = gate_ptr is not None
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
        here = (row * T + token) * H + head  # of contiguous tensors; the next token is H further
        dstate = dmemory.to(dstates_ptr.dtype.element_ty)
        tl.store(dstates_ptr + slot * K * V + offs_memory, dstate, mask=mask_memory)
        q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        dy = tile(rows(dy_ptr, dy_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
        beta = tl.load(rows(beta_ptr, beta_strides, row, token, head, offs_t), mask=mask_t, other=0.0).to(tl.float32)
        scores = tl.load(scores_ptr + slot * BLOCK_T * BLOCK_T + offs_square)
        inverse = tl.load(inverse_ptr + slot * BLOCK_T * BLOCK_T + offs_square)
        reader, asker, writer = times(q, scale), k, k
        if FADES:
            gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
            coarse, fine, all_coarse, all_fine = load_fade(gate_rows, mask_t, offs_k, mask_k, BY_CHANNEL)
            total = since_start(all_coarse, all_fine)
            read = since_start(coarse, fine)
            read_tile = read if BY_CHANNEL else read[:, None]
            reader, asker = times(q, read_tile * scale), times(k, read_tile)
        if BY_CHANNEL:
            writer = times(k, until_end(coarse, fine, all_coarse[None, :], all_fine[None, :]))
        dwritten = dot(writer, dmemory)
        if FADES and not BY_CHANNEL:
            dwritten *= until_end(coarse, fine, all_coarse, all_fine)[:, None]
        dwritten = dot(tl.trans(scores), dy, dwritten)
        dv = dot(tl.trans(inverse), (dwritten * beta[:, None]).to(inverse.dtype)).to(dv_ptr.dtype.element_ty)
        dv_tile = dv_ptr + here * V + (offs_t * (H * V))[:, None] + offs_v[None, :]
        tl.store(dv_tile, dv, mask=mask_t[:, None] & mask_v[None, :])
        if FADES:
            dmemory *= total[:, None] if BY_CHANNEL else total
        dmemory = dot(tl.trans(reader), dy, dmemory)
        dmemory = dot(tl.trans(asker), -dv, dmemory)
        slot -= H

    if dstart_ptr is not None:
        tl.store(dstart_ptr + (sequence * H + head) * K * V + offs_memory, dmemory, mask=mask_memory)


@triton.jit(do_not_specialize=["num_sequences"])
def delta_rule_bwd_chunk_kernel(
    q_ptr, k_ptr, beta_ptr, gate_ptr, scores_ptr, dy_ptr, dv_ptr, errors_ptr, states_ptr, dstates_ptr,
    dq_ptr, dk_ptr, dbeta_ptr, dgate_ptr, seqlens_ptr,
    q_strides, k_strides, beta_strides, gate_strides, dy_strides, scale,
    num_sequences, T, H, K: tl.constexpr, V: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, LEVELS: tl.constexpr, BY_CHANNEL: tl.constexpr,
):  # fmt: skip
    """One program: a chunk of a head; it takes BLOCK_V columns of the values and memories at a time."""
    FADES: tl.constexpr = gate_ptr is not None
    slot, head, row, first, length, start = locate_chunk(seqlens_ptr, num_sequences, T, H, BLOCK_T)
    if start >= length:
        return
    offs_t, offs_k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    mask_t, mask_k = start + offs_t < length, offs_k < K
    offs_square = offs_t[:, None] * BLOCK_T + offs_t[None, :]
    seen, earlier = offs_t[:, None] >= offs_t[None, :], offs_t[:, None] > offs_t[None, :]
    token = first + start
    here = (row * T + token) * H + head  # of contiguous tensors; the next token is H further
    slot = slot * H + head
    q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
    beta = tl.load(rows(beta_ptr, beta_strides, row, token, head, offs_t), mask=mask_t, other=0.0).to(tl.float32)
    coarse, fine = 0.0, 0.0

    of_scores = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    of_likeness = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    dq = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    dasked = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    dk = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
    passing = tl.zeros((BLOCK_K,), tl.float32)
    for block in range(0, V, BLOCK_V):
        offs_v = block + tl.arange(0, BLOCK_V)
        mask_v = offs_v < V
        mask_tile = mask_t[:, None] & mask_v[None, :]
        offs_tile = here * V + (offs_t * (H * V))[:, None] + offs_v[None, :]
        offs_memory = slot * K * V + offs_k[:, None] * V + offs_v[None, :]
        mask_memory = mask_k[:, None] & mask_v[None, :]
        dy = tile(rows(dy_ptr, dy_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
        dv = tl.load(dv_ptr + offs_tile, mask=mask_tile, other=0.0)
        errors = tl.load(errors_ptr + offs_tile, mask=mask_tile, other=0.0)
        memory = tl.load(states_ptr + offs_memory, mask=mask_memory, other=0.0)
        dafter = tl.load(dstates_ptr + offs_memory, mask=mask_memory, other=0.0)
        of_scores = dot(dy, tl.trans(errors), of_scores)
        of_likeness = dot(-dv, tl.trans(errors), of_likeness)
        dq = dot(dy, tl.trans(memory), dq)
        dasked = dot(-dv, tl.trans(memory), dasked)
        dk = dot(errors, tl.trans(dafter), dk)
        if FADES:
            passing += tl.sum(memory.to(tl.float32) * dafter.to(tl.float32), 1)

    dq *= scale
    if FADES:
        gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
        coarse, fine, all_coarse, all_fine = load_fade(gate_rows, mask_t, offs_k, mask_k, BY_CHANNEL)
        read, total = since_start(coarse, fine), since_start(all_coarse, all_fine)
        if BY_CHANNEL:
            left = until_end(coarse, fine, all_coarse[None, :], all_fine[None, :])
        else:
            read = read[:, None]
            left = until_end(coarse, fine, all_coarse, all_fine)[:, None]
        dq *= read
        dasked *= read
        dk *= left
    # What a token writes is beta E: the products with E give the gradient of beta, times beta they give all others.
    scores = tl.load(scores_ptr + slot * BLOCK_T * BLOCK_T + offs_square).to(tl.float32)
    likeness = weights_between(k, k, coarse, fine, offs_t, earlier, LEVELS, FADES, BY_CHANNEL)
    dbeta = tl.sum(scores * of_scores + likeness * of_likeness, 0) + tl.sum(k.to(tl.float32) * dk, 1)
    tl.store(dbeta_ptr + here + offs_t * H, dbeta, mask=mask_t)
    of_scores *= beta[None, :]
    of_likeness *= beta[None, :]
    dk *= beta[:, None]
    if FADES:
        from_before = q.to(tl.float32) * dq + k.to(tl.float32) * dasked
        # Without the last token's, which fades no more: beside it, the others' would be lost in the sums.
        to_after = tl.where((start + offs_t + 1 < length)[:, None], k.to(tl.float32) * dk, 0.0)
    if BY_CHANNEL:
        inside = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
        of_scores *= scale
        own = tl.sum(tl.where(offs_t[:, None] == offs_t[None, :], of_scores, 0.0), 1)
        dq += own[:, None] * k.to(tl.float32)
        dk += own[:, None] * q.to(tl.float32)
        for level in tl.static_range(LEVELS):
            factor = border_factor(coarse, fine, 1 << level)
            reads, asks = times(q, factor), times(k, factor)  # of late rows; an early one is a writer: asks
            across = late_and_early(offs_t, 1 << level)
            from_q = tl.where(across, of_scores, 0.0).to(q.dtype)
            from_k = tl.where(across, of_likeness, 0.0).to(q.dtype)
            to_q, to_asked = dot(from_q, asks), dot(from_k, asks)
            to_k = dot(tl.trans(from_k), asks, dot(tl.trans(from_q), reads))
            inside += reads.to(tl.float32) * to_q + asks.to(tl.float32) * (to_asked - to_k)
            dq += factor * to_q
            dk += factor * (to_asked + to_k)
        dgate = tl.cumsum(inside + from_before, 0, reverse=True) + tl.cumsum(to_after, 0) - to_after
        dgate_tile = dgate_ptr + here * K + (offs_t * (H * K))[:, None] + offs_k[None, :]
        tl.store(dgate_tile, dgate + (passing * total)[None, :], mask=mask_t[:, None] & mask_k[None, :])
    else:
        if FADES:
            flow = tl.where(earlier, scores * of_scores + likeness * of_likeness, 0.0)
            inside = tl.sum(flow, 1) - tl.sum(flow, 0) + tl.sum(from_before, 1)
            after = tl.sum(to_after, 1)
            # a column: a sum over its only axis does not compile for memories of Blackwell's tensor cores
            crossing = tl.sum(passing[:, None], 0) * total
            dgate = tl.cumsum(inside, 0, reverse=True) + tl.cumsum(after, 0) - after + crossing
            tl.store(dgate_ptr + here + offs_t * H, dgate, mask=mask_t)
            fades = fade_between(coarse, fine, seen)
            of_scores *= fades
            of_likeness *= fades
        of_scores = tl.where(seen, of_scores * scale, 0.0).to(q.dtype)
        of_likeness = tl.where(earlier, of_likeness, 0.0).to(q.dtype)
        dq = dot(of_scores, k, dq)
        dk = dot(tl.trans(of_scores), q, dk)
        dasked = dot(of_likeness, k, dasked)
        dk = dot(tl.trans(of_likeness), k, dk)
    offs_tile = here * K + (offs_t * (H * K))[:, None] + offs_k[None, :]
    mask_tile = mask_t[:, None] & mask_k[None, :]
    tl.store(dq_ptr + offs_tile, dq.to(dq_ptr.dtype.element_ty), mask=mask_tile)
    tl.store(dk_ptr + offs_tile, (dk + dasked).to(dk_ptr.dtype.element_ty), mask=mask_tile)


def run_backward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, dy: Tensor, dmemory: Tensor | None, scale: float,
) -> list[Tensor | None]:  # fmt: skip
    """dq, dk, dv, dbeta, dlog_decay and dstate, None where there is no such input."""
    (b, t, h, key), value = q.shape, v.shape[-1]
    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    kind, width = kind_of(log_decay), max(key, value)
    inverse, scores = run_pairs(q, k, v, beta, log_decay, cu_seqlens, scale, scored=True)
    slots, _, chunk, _ = inverse.shape
    common = dict(BLOCK_T=chunk, BLOCK_K=power_of_two(key), BY_CHANNEL=kind == "channel")
    errors, states, dstates = v.new_empty(v.shape), *(v.new_empty(slots, h, key, value) for _ in range(2))
    run_walk(k, v, beta, log_decay, inverse, state, cu_seqlens, scale, errors=errors, states=states)

    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    dbeta = beta.new_empty(beta.shape, dtype=torch.float32)
    dgate = None if log_decay is None else log_decay.new_empty(log_decay.shape, dtype=torch.float32)
    dstate = None if state is None else torch.empty_like(state, dtype=torch.float32)
    config = dict(BACKWARD_WALK[kind].pick(q.dtype, width))
    block_v = min(config.pop("BLOCK"), power_of_two(value))
    delta_rule_bwd_walk_kernel[(n * h * triton.cdiv(value, block_v),)](
        q, k, beta, log_decay, inverse, scores, dy, dv, dstates, dmemory, dstate, cu_seqlens,
        *strides_of(q, k, beta, log_decay, dy), scale, t, h, key, value,
        BLOCK_V=block_v, **common, **config,
    )  # fmt: skip
    config = dict(BACKWARD_CHUNK[kind].pick(q.dtype, width))
    block_v = min(config.pop("BLOCK"), power_of_two(value))
    delta_rule_bwd_chunk_kernel[(slots * h,)](
        q, k, beta, log_decay, scores, dy, dv, errors, states, dstates, dq, dk, dbeta, dgate, cu_seqlens,
        *strides_of(q, k, beta, log_decay, dy), scale, n, t, h, key, value,
        BLOCK_V=block_v, LEVELS=chunk.bit_length() - 1, **common, **config,
    )  # fmt: skip
    return [dq, dk, dv, dbeta, dgate, dstate]
