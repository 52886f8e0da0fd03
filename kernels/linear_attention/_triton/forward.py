"""The output, walked along time a chunk at a time with the memory in registers."""

import triton
import triton.language as tl
from torch import Tensor

from ..._levels import weights_by_channel
from ..._tiles import (
    carried,
    chunk_of,
    dot,
    fade,
    fade_between,
    locate,
    power_of_two,
    precision,
    read_memory,
    rows,
    since_start,
    strides_of,
    tile,
    times,
    until_end,
)
from .. import EPS
from ._configs import FORWARD, kind_of
from ._segments import segment_of
from ._states import run_states


@triton.jit
def linear_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, y_ptr, den_ptr, start_ptr, parts_ptr, totals_ptr, end_ptr, seqlens_ptr,
    q_strides, k_strides, v_strides, gate_strides, scale, eps,
    T, H, K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr, segment,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, LEVELS: tl.constexpr,
    BY_CHANNEL: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a segment of a head and BLOCK_V columns; the memory (BLOCK_K, BLOCK_V) stays in registers.

    q, k and v are read once, in chunks of BLOCK_T tokens. With NORMALIZE the memory's column of ones stands apart.
    """
    blocks = tl.cdiv(V, BLOCK_V)
    block, head, sequence, row, first, length, index = locate(seqlens_ptr, T, H, segment, blocks)
    begin = index * segment
    if (begin >= length) & (index > 0):
        return
    end = tl.minimum(begin + segment, length)
    offs_t, offs_k, offs_v = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K), block * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_k, mask_v = offs_k < K, offs_v < V
    seen = offs_t[:, None] >= offs_t[None, :]

    segments = tl.cdiv(T, segment)
    offs_memory = offs_k[:, None] * COLUMNS + offs_v[None, :]
    mask_memory = mask_k[:, None] & mask_v[None, :]
    memory = carried(
        start_ptr, parts_ptr, totals_ptr, sequence, head, H, K, K * COLUMNS, segments, 0, index, 1,
        offs_memory, mask_memory, offs_k[:, None], mask_k[:, None], BY_CHANNEL,
    )  # fmt: skip
    if NORMALIZE:
        ones = carried(
            start_ptr, parts_ptr, totals_ptr, sequence, head, H, K, K * COLUMNS, segments, 0, index, 1,
            offs_k * COLUMNS + V, mask_k, offs_k, mask_k, BY_CHANNEL,
        )  # fmt: skip

    for start in range(begin, end, BLOCK_T):
        mask_t = start + offs_t < end
        token = first + start
        q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        v = tile(rows(v_ptr, v_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
        reader, writer = q, k
        if gate_ptr is not None:
            gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
            gate = tile(gate_rows, mask_t, offs_k, mask_k) if BY_CHANNEL else tl.load(gate_rows, mask=mask_t, other=0.0)
            coarse, fine, all_coarse, all_fine = fade(gate)
            total = since_start(all_coarse, all_fine)
        if BY_CHANNEL:
            weights = weights_by_channel(q, k, coarse, fine, offs_t, LEVELS)
            reader = times(q, since_start(coarse, fine))
            writer = times(k, until_end(coarse, fine, all_coarse[None, :], all_fine[None, :]))
        else:
            weights = dot(q, tl.trans(k))
            if gate_ptr is not None:
                weights *= fade_between(coarse, fine, seen)
            weights = tl.where(seen, weights, 0.0)
        y = read_memory(reader, memory, PRECISION)
        if NORMALIZE:
            den = tl.sum(reader.to(tl.float32) * ones[None, :], 1)
        if gate_ptr is not None and not BY_CHANNEL:
            read = since_start(coarse, fine)
            y *= read[:, None]
            if NORMALIZE:
                den *= read
        y = dot(weights.to(v.dtype), v, y) * scale
        here = (row * T + token) * H + head  # of the contiguous tensors; the next token is H further
        if NORMALIZE:
            den = (den + tl.sum(weights, 1)) * scale + eps
            y /= den[:, None]
            tl.store(den_ptr + here + offs_t * H, den, mask=mask_t & (block == 0))
        y_rows = y_ptr + here * V + offs_t * (H * V)
        mask_y = mask_t[:, None] & mask_v[None, :]
        tl.store(y_rows[:, None] + offs_v[None, :], y.to(y_ptr.dtype.element_ty), mask=mask_y)

        one = mask_t.to(tl.float32)
        if gate_ptr is not None:
            if BY_CHANNEL:
                memory *= total[:, None]
            else:
                write = until_end(coarse, fine, all_coarse, all_fine)
                v = times(v, write[:, None])
                one *= write
                memory *= total
        memory = dot(tl.trans(writer), v, memory)
        if NORMALIZE:
            if gate_ptr is not None:
                ones *= total
            ones += tl.sum(writer.to(tl.float32) * one[:, None], 0)

    if end == length:
        end_ptr += (sequence * H + head) * K * COLUMNS
        tl.store(end_ptr + offs_memory, memory, mask=mask_memory)
        if NORMALIZE:
            tl.store(end_ptr + offs_k * COLUMNS + V, ones, mask=mask_k & (block == 0))


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    y: Tensor, memory: Tensor, den: Tensor, scale: float, normalize: bool,
) -> None:  # fmt: skip
    """Fill y, the memory after the last token and, with `normalize`, what y was divided by."""
    (b, t, h, key), value = q.shape, v.shape[-1]
    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    kind = kind_of(log_decay)
    config = dict(FORWARD[kind].pick(q.dtype, max(key, value)))
    block_v, chunk = min(config.pop("BLOCK"), power_of_two(value)), chunk_of(config.pop("BLOCK_T"), t)
    blocks = triton.cdiv(value, block_v)
    segment = segment_of(t, n * h * blocks)
    parts, totals = run_states(k, v, log_decay, cu_seqlens, segment, memory.shape[-1])
    linear_attention_fwd_kernel[(n * triton.cdiv(t, segment) * h * blocks,)](
        q, k, v, log_decay, y, den, state, parts, totals, memory, cu_seqlens, *strides_of(q, k, v, log_decay),
        scale, EPS, t, h, key, value, memory.shape[-1], segment,
        BLOCK_T=chunk, BLOCK_K=power_of_two(key), BLOCK_V=block_v, LEVELS=chunk.bit_length() - 1,
        BY_CHANNEL=kind == "channel", NORMALIZE=normalize, PRECISION=precision(), **config,
    )  # fmt: skip
