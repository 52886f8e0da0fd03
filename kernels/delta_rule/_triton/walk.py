"""The walk along time with the memory in registers: y, or what the gradients are made of."""

import triton
import triton.language as tl
from torch import Tensor

from ..._chunks import first_slot, load_fade, weights_between
from ..._tiles import (
    dot,
    locate,
    power_of_two,
    rows,
    since_start,
    strides_of,
    tile,
    times,
    until_end,
)
from ._configs import WALK, kind_of


@triton.jit
def delta_rule_walk_kernel(
    q_ptr, k_ptr, v_ptr, beta_ptr, gate_ptr, inverse_ptr, scores_ptr, y_ptr, errors_ptr, states_ptr, start_ptr, end_ptr,
    seqlens_ptr, q_strides, k_strides, v_strides, beta_strides, gate_strides, scale,
    T, H, K: tl.constexpr, V: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
):  # fmt: skip
    """One program: a head and BLOCK_V columns of its memory (BLOCK_K, BLOCK_V), a chunk of BLOCK_T tokens at a time.

    It writes y; or instead E and the memory before each chunk. Without U and scores there is one token, or no decay a
    channel that would have to be weighed.
    """
    FADES: tl.constexpr = gate_ptr is not None
    block, head, sequence, row, first, length, _ = locate(seqlens_ptr, T, H, T, tl.cdiv(V, BLOCK_V))
    offs_t, offs_k, offs_v = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K), block * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_k, mask_v = offs_k < K, offs_v < V
    seen = offs_t[:, None] >= offs_t[None, :]
    offs_square = offs_t[:, None] * BLOCK_T + offs_t[None, :]
    offs_memory = offs_k[:, None] * V + offs_v[None, :]
    mask_memory = mask_k[:, None] & mask_v[None, :]
    memory = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    if start_ptr is not None:
        start_ptr += (sequence * H + head) * K * V
        memory += tl.load(start_ptr + offs_memory, mask=mask_memory, other=0.0).to(tl.float32)

    slot = (first_slot(seqlens_ptr, sequence, first, T, BLOCK_T)) * H + head
    for start in range(0, length, BLOCK_T):
        mask_t = start + offs_t < length
        token = first + start
        here = (row * T + token) * H + head  # of contiguous tensors; the next token is H further
        mask_tile = mask_t[:, None] & mask_v[None, :]
        k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        v = tile(rows(v_ptr, v_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
        beta = tl.load(rows(beta_ptr, beta_strides, row, token, head, offs_t), mask=mask_t, other=0.0).to(tl.float32)
        if states_ptr is not None:
            state = memory.to(states_ptr.dtype.element_ty)
            tl.store(states_ptr + slot * K * V + offs_memory, state, mask=mask_memory)
        coarse, fine = 0.0, 0.0
        asker, writer = k, k
        if FADES:
            gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
            coarse, fine, all_coarse, all_fine = load_fade(gate_rows, mask_t, offs_k, mask_k, BY_CHANNEL)
            total = since_start(all_coarse, all_fine)
            read = since_start(coarse, fine)
        if BY_CHANNEL:
            asker = times(k, read)
            writer = times(k, until_end(coarse, fine, all_coarse[None, :], all_fine[None, :]))
        asked = dot(asker, memory)
        if FADES and not BY_CHANNEL:
            asked *= read[:, None]
        errors = v.to(tl.float32) - asked
        if inverse_ptr is not None:
            inverse = tl.load(inverse_ptr + slot * BLOCK_T * BLOCK_T + offs_square)
            errors = dot(inverse, errors.to(inverse.dtype))
        written = times(errors, beta[:, None]).to(k.dtype)
        if errors_ptr is not None:
            errors_tile = errors_ptr + here * V + (offs_t * (H * V))[:, None] + offs_v[None, :]
            tl.store(errors_tile, errors.to(errors_ptr.dtype.element_ty), mask=mask_tile)
        if y_ptr is not None:
            q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
            y = dot(times(q, read) if BY_CHANNEL else q, memory)
            if FADES and not BY_CHANNEL:
                y *= read[:, None]
            if scores_ptr is not None:
                scores = tl.load(scores_ptr + slot * BLOCK_T * BLOCK_T + offs_square)
            else:
                scores = weights_between(q, k, coarse, fine, offs_t, seen, 0, FADES and not BY_CHANNEL, False)
                scores = times(scores, scale).to(k.dtype)
            y = dot(scores, written, y * scale)
            y_tile = y_ptr + here * V + (offs_t * (H * V))[:, None] + offs_v[None, :]
            tl.store(y_tile, y.to(y_ptr.dtype.element_ty), mask=mask_tile)
        if FADES:
            if BY_CHANNEL:
                memory *= total[:, None]
            else:
                memory *= total
                written = times(written, until_end(coarse, fine, all_coarse, all_fine)[:, None])
        memory = dot(tl.trans(writer), written, memory)
        slot += H

    if end_ptr is not None:
        tl.store(end_ptr + (sequence * H + head) * K * V + offs_memory, memory, mask=mask_memory)


def run_walk(
    k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, inverse: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float, *, q: Tensor | None = None, scores: Tensor | None = None,
    y: Tensor | None = None, end: Tensor | None = None, errors: Tensor | None = None, states: Tensor | None = None,
) -> None:  # fmt: skip
    """Fill y and the memory after the last token; or E (b, t, h, v) and the memory before each chunk."""
    (b, t, h, key), value = k.shape, v.shape[-1]
    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    kind = kind_of(log_decay)
    config = dict(WALK[kind].pick(k.dtype, max(key, value)))
    block_v = min(config.pop("BLOCK"), power_of_two(value))
    chunk = power_of_two(1) if inverse is None else inverse.shape[-1]
    delta_rule_walk_kernel[(n * h * triton.cdiv(value, block_v),)](
        q, k, v, beta, log_decay, inverse, scores, y, errors, states, state, end, cu_seqlens,
        *strides_of(q, k, v, beta, log_decay), scale, t, h, key, value,
        BLOCK_T=chunk, BLOCK_K=power_of_two(key), BLOCK_V=block_v,
        BY_CHANNEL=kind == "channel", **config,
    )  # fmt: skip
