"""The first pass where time is cut into segments: what each adds to a memory, and how much it lets fade."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._tiles import chunk_of, dot, fade, locate, power_of_two, rows, since_start, strides_of, tile, times, until_end
from ._configs import STATES, kind_of


@triton.jit
def linear_attention_states_kernel(
    k_ptr, v_ptr, gate_ptr, den_ptr, dden_ptr, parts_ptr, totals_ptr, seqlens_ptr,
    k_strides, v_strides, gate_strides, scale,
    T, H, K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr, segment,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BY_CHANNEL: tl.constexpr,
    NORMALIZE: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """One program: what one segment adds to BLOCK_V columns of a memory (BLOCK_K, BLOCK_V), and how much it fades.

    With REVERSE, k and v are scale * q and dy, and the memory is the gradient, which walks backward in time.
    """
    blocks = tl.cdiv(V, BLOCK_V)
    block, head, sequence, row, first, length, index = locate(seqlens_ptr, T, H, segment, blocks)
    begin = index * segment
    end = tl.minimum(begin + segment, length)
    if (begin >= length) | (begin == 0 if REVERSE else end == length):  # nothing, or nothing that anyone reads
        return
    offs_t, offs_k, offs_v = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K), block * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_k, mask_v = offs_k < K, offs_v < V
    memory = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    ones = tl.zeros((BLOCK_K,), tl.float32)  # the column of ones
    log_total = tl.zeros((BLOCK_K,), tl.float32) if BY_CHANNEL else 0.0
    for chunk in range(tl.cdiv(end - begin, BLOCK_T)):
        start = begin + (tl.cdiv(end - begin, BLOCK_T) - 1 - chunk if REVERSE else chunk) * BLOCK_T
        mask_t = start + offs_t < end
        token = first + start
        k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
        v = tile(rows(v_ptr, v_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
        one = mask_t.to(tl.float32)
        if NORMALIZE and REVERSE:
            here = (row * T + token + offs_t) * H + head
            v = times(v, 1.0 / tl.load(den_ptr + here, mask=mask_t, other=1.0)[:, None])
            one = tl.load(dden_ptr + here, mask=mask_t, other=0.0)
        if REVERSE:
            k = times(k, scale)
        if gate_ptr is not None:
            gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
            if BY_CHANNEL:
                coarse, fine, all_coarse, all_fine = fade(tile(gate_rows, mask_t, offs_k, mask_k))
                if REVERSE:
                    factor = since_start(coarse, fine)
                else:
                    factor = until_end(coarse, fine, all_coarse[None, :], all_fine[None, :])
                k = times(k, factor)
                memory *= since_start(all_coarse, all_fine)[:, None]
            else:
                coarse, fine, all_coarse, all_fine = fade(tl.load(gate_rows, mask=mask_t, other=0.0))
                factor = since_start(coarse, fine) if REVERSE else until_end(coarse, fine, all_coarse, all_fine)
                v = times(v, factor[:, None])
                one *= factor
                memory *= since_start(all_coarse, all_fine)
            ones *= since_start(all_coarse, all_fine)
            log_total += all_coarse + all_fine
        memory = dot(tl.trans(k), v, memory)
        if NORMALIZE:
            ones += tl.sum(k.to(tl.float32) * one[:, None], 0)
    slot = (sequence * tl.cdiv(T, segment) + index) * H + head
    part = parts_ptr + slot * K * COLUMNS
    tl.store(part + offs_k[:, None] * COLUMNS + offs_v[None, :], memory, mask=mask_k[:, None] & mask_v[None, :])
    if NORMALIZE:
        tl.store(part + offs_k * COLUMNS + V, ones, mask=mask_k & (block == 0))
    if gate_ptr is not None:
        if BY_CHANNEL:
            tl.store(totals_ptr + slot * K + offs_k, tl.exp2(log_total), mask=mask_k & (block == 0))
        else:
            tl.store(totals_ptr + slot, tl.exp2(log_total), mask=block == 0)


def run_states(
    k: Tensor, v: Tensor, log_decay: Tensor | None, cu_seqlens: Tensor | None, segment: int, columns: int, *,
    scale: float = 1.0, den: Tensor | None = None, dden: Tensor | None = None, reverse: bool = False,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """(n, segments, h, k, columns) parts of the memory and (n, segments, h[, k]) factors; None if there is one segment.

    columns: of the memory, one more than v has if it ends with a column of ones.
    reverse: k and v are q and dy, and the parts those of the memory's gradient, for `scale`, `den` and `dden`.
    """
    (b, t, h, key), value = k.shape, v.shape[-1]
    n, segments = b if cu_seqlens is None else len(cu_seqlens) - 1, triton.cdiv(t, segment)
    if segments == 1:
        return None, None
    kind = kind_of(log_decay)
    config = dict(STATES[kind].pick(k.dtype, max(key, value)))
    block_v, chunk = min(config.pop("BLOCK"), power_of_two(value)), chunk_of(config.pop("BLOCK_T"), t)
    parts, totals = k.new_empty(n, segments, h, key, columns, dtype=torch.float32), None
    if kind != "none":
        totals = parts.new_empty((n, segments, h, key) if kind == "channel" else (n, segments, h))
    linear_attention_states_kernel[(n * segments * h * triton.cdiv(value, block_v),)](
        k, v, log_decay, den, dden, parts, totals, cu_seqlens, *strides_of(k, v, log_decay),
        scale, t, h, key, value, columns, segment, BLOCK_T=chunk, BLOCK_K=power_of_two(key), BLOCK_V=block_v,
        BY_CHANNEL=kind == "channel", NORMALIZE=columns > value, REVERSE=reverse, **config,
    )  # fmt: skip
    return parts, totals
