"""The walk along time with the memory in registers: y, or what the gradients are made of."""

import triton
import triton.language as tl
from torch import Tensor

from ..._chunks import first_slot
from ..._tiles import dot, locate, power_of_two, rows, since_start, strides_of, tile, times, until_end
from ._configs import WALK
from ._fades import load_fades
from .pairs import Pairs


@triton.jit
def generalized_delta_rule_walk_kernel(
    q_ptr, k_ptr, v_ptr, a_ptr, b_ptr, gate_ptr, inverse_ptr, heard_ptr, scores_ptr, echoes_ptr,
    y_ptr, answers_ptr, states_ptr, start_ptr, end_ptr, seqlens_ptr,
    q_strides, k_strides, v_strides, a_strides, b_strides, gate_strides, scale,
    T, H, K: tl.constexpr, V: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program: a head and BLOCK_V columns of its memory (BLOCK_K, BLOCK_V), a chunk of BLOCK_T tokens at a time.

    It writes y; or instead F and the memory before each chunk. Without weights there is one token.
    """
    block, head, sequence, row, first, length, _ = locate(seqlens_ptr, T, H, T, tl.cdiv(V, BLOCK_V))
    offs_t, offs_k, offs_v = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K), block * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_k, mask_v = offs_k < K, offs_v < V
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
        offs_tile = ((row * T + token) * H + head) * V + (offs_t * (H * V))[:, None] + offs_v[None, :]
        mask_tile = mask_t[:, None] & mask_v[None, :]
        k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        v = tile(rows(v_ptr, v_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
        a = tile(rows(a_ptr, a_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        b = tile(rows(b_ptr, b_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
        coarse, fine, coarse_before, fine_before, all_coarse, all_fine = load_fades(gate_rows, mask_t, offs_k, mask_k)
        if states_ptr is not None:
            state = memory.to(states_ptr.dtype.element_ty)
            tl.store(states_ptr + slot * K * V + offs_memory, state, mask=mask_memory)
        answers = dot(times(a, since_start(coarse_before, fine_before)), memory)
        if inverse_ptr is not None:
            heard = tl.load(heard_ptr + slot * BLOCK_T * BLOCK_T + offs_square)
            inverse = tl.load(inverse_ptr + slot * BLOCK_T * BLOCK_T + offs_square)
            answers = dot(inverse, dot(heard, v, answers).to(inverse.dtype))
        answers = answers.to(k.dtype)
        if answers_ptr is not None:
            tl.store(answers_ptr + offs_tile, answers, mask=mask_tile)
        if y_ptr is not None:
            q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
            y = dot(times(q, since_start(coarse, fine)), memory) * scale
            if scores_ptr is not None:
                scores = tl.load(scores_ptr + slot * BLOCK_T * BLOCK_T + offs_square)
                echoes = tl.load(echoes_ptr + slot * BLOCK_T * BLOCK_T + offs_square)
            else:
                itself = offs_t[:, None] == offs_t[None, :]
                scores = times(tl.where(itself, dot(q, tl.trans(k)), 0.0), scale).to(k.dtype)
                echoes = times(tl.where(itself, dot(q, tl.trans(b)), 0.0), scale).to(k.dtype)
            y = dot(echoes, answers, dot(scores, v, y))
            tl.store(y_ptr + offs_tile, y.to(y_ptr.dtype.element_ty), mask=mask_tile)
        left = until_end(coarse, fine, all_coarse[None, :], all_fine[None, :])
        memory *= since_start(all_coarse, all_fine)[:, None]
        memory = dot(tl.trans(times(k, left)), v, memory)
        memory = dot(tl.trans(times(b, left)), answers, memory)
        slot += H

    if end_ptr is not None:
        tl.store(end_ptr + (sequence * H + head) * K * V + offs_memory, memory, mask=mask_memory)


def run_walk(
    k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, pairs: Pairs | None, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float, *, q: Tensor | None = None, y: Tensor | None = None,
    end: Tensor | None = None, answers: Tensor | None = None, states: Tensor | None = None,
) -> None:  # fmt: skip
    """Fill y and the memory after the last token; or F (b, t, h, v) and the memory before each chunk."""
    (num_rows, t, h, key), value = k.shape, v.shape[-1]
    n = num_rows if cu_seqlens is None else len(cu_seqlens) - 1
    config = dict(WALK.pick(k.dtype, max(key, value)))
    block_v = min(config.pop("BLOCK"), power_of_two(value))
    chunk = power_of_two(1) if pairs is None else pairs.inverse.shape[-1]
    generalized_delta_rule_walk_kernel[(n * h * triton.cdiv(value, block_v),)](
        q, k, v, a, b, log_decay, *(pairs or (None,) * len(Pairs._fields)), y, answers, states, state, end, cu_seqlens,
        *strides_of(q, k, v, a, b, log_decay), scale, t, h, key, value,
        BLOCK_T=chunk, BLOCK_K=power_of_two(key), BLOCK_V=block_v, **config,
    )  # fmt: skip
