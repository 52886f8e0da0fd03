"""Gradients: one walk forward in time gives dq, one backward in time gives dk and dv, and the gradient of log_decay.

Raising log_decay at token s by one raises every pair of a query at or after s and a key before s by its own size. For a
chunk, such pairs lie inside it, or begin before it and end in it (q . dq of what is read from the memory), or begin in
it and end after it (k . dk of what is read from the memory's gradient), or pass over it. The last are those that cross
its end, less those that begin in it; where a span of `anchor` tokens ends, they are memory . gradient, from a memory
that was kept. Nothing larger than the result is subtracted: what crosses the end of a chunk is the gradient of the next
token's decay, and after the last token nothing is subtracted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._levels import border_factor, late_and_early, weights_by_channel
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
from ._configs import BACKWARD_KV, BACKWARD_Q, kind_of
from ._segments import ANCHOR, segment_of
from ._states import run_states


@triton.jit
def anchors_before(seqlens_ptr, sequence, first, T, anchor):
    """Places in the row of anchors before this sequence's: each sequence has one for its last, shorter span."""
    if seqlens_ptr is None:
        return sequence * tl.cdiv(T, anchor)
    else:
        return first // anchor + sequence


@triton.jit
def linear_attention_bwd_q_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, y_ptr, dy_ptr, den_ptr, dden_ptr, dq_ptr, flow_ptr, anchors_ptr,
    start_ptr, parts_ptr, totals_ptr, seqlens_ptr, q_strides, k_strides, v_strides, gate_strides, dy_strides,
    scale, B, T, H, K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr, segment, anchor,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, LEVELS: tl.constexpr, LAST: tl.constexpr,
    BY_CHANNEL: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a segment of a head and BLOCK_K columns of dq; the memory, transposed, stays in registers.

    k, v and dy are read once. With a decay also q, for the pairs that end in each chunk; and the memory before the last
    LAST or fewer of every `anchor` tokens is kept. With NORMALIZE also y, for the gradient `dden` of the divisor.
    """
    blocks = tl.cdiv(K, BLOCK_K)
    block, head, sequence, row, first, length, index = locate(seqlens_ptr, T, H, segment, blocks)
    begin = index * segment
    if begin >= length:
        return
    end = tl.minimum(begin + segment, length)
    offs_t, offs_k, offs_v = tl.arange(0, BLOCK_T), block * BLOCK_K + tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    mask_k, mask_v = offs_k < K, offs_v < V
    seen = offs_t[:, None] >= offs_t[None, :]

    segments = tl.cdiv(T, segment)
    offs_memory = offs_k[None, :] * COLUMNS + offs_v[:, None]
    mask_memory = mask_k[None, :] & mask_v[:, None]
    memory = carried(
        start_ptr, parts_ptr, totals_ptr, sequence, head, H, K, K * COLUMNS, segments, 0, index, 1,
        offs_memory, mask_memory, offs_k[None, :], mask_k[None, :], BY_CHANNEL,
    )  # fmt: skip
    if NORMALIZE:
        ones = carried(
            start_ptr, parts_ptr, totals_ptr, sequence, head, H, K, K * COLUMNS, segments, 0, index, 1,
            offs_k * COLUMNS + V, mask_k, offs_k, mask_k, BY_CHANNEL,
        )  # fmt: skip

    for span in range(begin, end, anchor):
        span_end = tl.minimum(span + anchor, end)
        for start in range(span, span_end, BLOCK_T):
            if anchors_ptr is not None:  # noqa: SIM102, for it is known when compiling
                if start == span + (span_end - 1 - span) // LAST * LAST:
                    slot = (anchors_before(seqlens_ptr, sequence, first, T, anchor) + span // anchor) * H + head
                    tl.store(anchors_ptr + slot * K * COLUMNS + offs_memory, memory, mask=mask_memory)
                    if NORMALIZE:
                        tl.store(anchors_ptr + slot * K * COLUMNS + offs_k * COLUMNS + V, ones, mask=mask_k)
            mask_t = start + offs_t < span_end
            token = first + start
            here = (row * T + token) * H + head  # of contiguous tensors; the next token is H further
            k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
            v = tile(rows(v_ptr, v_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
            dy = tile(rows(dy_ptr, dy_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
            if NORMALIZE:
                inverse = 1.0 / tl.load(den_ptr + here + offs_t * H, mask=mask_t, other=1.0)
                y = tile(y_ptr + here * V + offs_t * (H * V), mask_t, offs_v, mask_v)
                dden = -tl.sum(dy.to(tl.float32) * y.to(tl.float32), 1) * inverse
                tl.store(dden_ptr + here + offs_t * H, dden, mask=mask_t & (block == 0))
                dy = times(dy, inverse[:, None])
            weights = dot(dy, tl.trans(v))  # of pairs: how much more of them the loss wants
            dq = read_memory(dy, memory, PRECISION)
            if NORMALIZE:
                weights += dden[:, None]
                dq += dden[:, None] * ones[None, :]
            writer = k
            if gate_ptr is not None:
                q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k).to(tl.float32)
                gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
                if BY_CHANNEL:
                    coarse, fine, all_coarse, all_fine = fade(tile(gate_rows, mask_t, offs_k, mask_k))
                    dq *= since_start(coarse, fine)
                    flow_tile = flow_ptr + here * K + (offs_t * (H * K))[:, None] + offs_k[None, :]
                    flow = (q * dq * scale).to(flow_ptr.dtype.element_ty)
                    tl.store(flow_tile, flow, mask=mask_t[:, None] & mask_k[None, :])
                    writer = times(k, until_end(coarse, fine, all_coarse[None, :], all_fine[None, :]))
                    memory *= since_start(all_coarse, all_fine)[None, :]
                else:
                    coarse, fine, all_coarse, all_fine = fade(tl.load(gate_rows, mask=mask_t, other=0.0))
                    dq *= since_start(coarse, fine)[:, None]
                    flow = tl.sum(q * dq, 1) * scale
                    tl.store(flow_ptr + block.to(tl.int64) * B * T * H + here + offs_t * H, flow, mask=mask_t)
                    weights *= fade_between(coarse, fine, seen)
                    writer = times(k, until_end(coarse, fine, all_coarse, all_fine)[:, None])
                    memory *= since_start(all_coarse, all_fine)
            if BY_CHANNEL:
                own = tl.sum(tl.where(offs_t[:, None] == offs_t[None, :], weights, 0.0), 1)
                dq += own[:, None] * k.to(tl.float32)
                for level in tl.static_range(LEVELS):
                    factor = border_factor(coarse, fine, 1 << level)
                    pairs = tl.where(late_and_early(offs_t, 1 << level), weights, 0.0)
                    dq += factor * dot(pairs.to(k.dtype), times(k, factor))
            else:
                dq = dot(tl.where(seen, weights, 0.0).to(k.dtype), k, dq)
            dq_tile = dq_ptr + here * K + (offs_t * (H * K))[:, None] + offs_k[None, :]
            tl.store(dq_tile, (dq * scale).to(dq_ptr.dtype.element_ty), mask=mask_t[:, None] & mask_k[None, :])
            memory = dot(tl.trans(v), writer, memory)
            if NORMALIZE:
                if gate_ptr is not None:
                    ones *= since_start(all_coarse, all_fine)
                ones += tl.sum(writer.to(tl.float32), 0)


@triton.jit
def _walk_back(
    q_ptr, k_ptr, v_ptr, gate_ptr, dy_ptr, den_ptr, dden_ptr, flow_ptr, anchors_ptr, dk_ptr, dv_ptr, dgate_ptr,
    dend_ptr, parts_ptr, totals_ptr, dstart_ptr, seqlens_ptr,
    q_strides, k_strides, v_strides, gate_strides, dy_strides,
    scale, B, T, H, K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr, segment, anchor, flow_blocks,
    block, head, sequence, row, first, length, index,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, LEVELS: tl.constexpr,
    GIVES_K: tl.constexpr, GIVES_V: tl.constexpr,
    BY_CHANNEL: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A segment of a head, backward in time; the memory's gradient (BLOCK_K, BLOCK_V) stays in registers.

    It gives dk if BLOCK_V holds all values, with the gradients of log_decay and of the first memory, and dv if BLOCK_K
    holds all keys. Inside a chunk tiles are (key, query).
    """
    FADES: tl.constexpr = gate_ptr is not None
    key_blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    begin = index * segment
    end = tl.minimum(begin + segment, length)
    offs_t, offs_k, offs_v = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    if GIVES_V:
        offs_v += block * BLOCK_V
    else:
        offs_k += block * BLOCK_K
    mask_k, mask_v = offs_k < K, offs_v < V

    segments = tl.cdiv(T, segment)
    last = tl.maximum(tl.cdiv(length, segment) - 1, 0)
    offs_memory = offs_k[:, None] * COLUMNS + offs_v[None, :]
    mask_memory = mask_k[:, None] & mask_v[None, :]
    memory = carried(
        dend_ptr, parts_ptr, totals_ptr, sequence, head, H, K, K * COLUMNS, segments, last, last - index, -1,
        offs_memory, mask_memory, offs_k[:, None], mask_k[:, None], BY_CHANNEL,
    )  # fmt: skip
    if NORMALIZE:
        ones = carried(
            dend_ptr, parts_ptr, totals_ptr, sequence, head, H, K, K * COLUMNS, segments, last, last - index, -1,
            offs_k * COLUMNS + V, mask_k, offs_k, mask_k, BY_CHANNEL,
        )  # fmt: skip

    spans = tl.cdiv(end - begin, anchor)
    for backward in range(spans):
        span = begin + (spans - 1 - backward) * anchor
        span_end = tl.minimum(span + anchor, end)
        if FADES and GIVES_K:  # pairs that cross the end of the chunk at hand
            crossing = tl.zeros((BLOCK_K if BY_CHANNEL else 1,), tl.float32)
        chunks = tl.cdiv(span_end - span, BLOCK_T)
        for step in range(chunks):
            start = span + (chunks - 1 - step) * BLOCK_T
            mask_t = start + offs_t < span_end
            token = first + start
            here = (row * T + token) * H + head  # of contiguous tensors; the next token is H further
            q = tile(rows(q_ptr, q_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
            k = tile(rows(k_ptr, k_strides, row, token, head, offs_t), mask_t, offs_k, mask_k)
            v = tile(rows(v_ptr, v_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
            dy = tile(rows(dy_ptr, dy_strides, row, token, head, offs_t), mask_t, offs_v, mask_v)
            if NORMALIZE:
                inverse = 1.0 / tl.load(den_ptr + here + offs_t * H, mask=mask_t, other=1.0)
                dden = tl.load(dden_ptr + here + offs_t * H, mask=mask_t, other=0.0)
                dy = times(dy, inverse[:, None])
            if FADES:
                gate_rows = rows(gate_ptr, gate_strides, row, token, head, offs_t)
                if BY_CHANNEL:
                    gate = tile(gate_rows, mask_t, offs_k, mask_k)
                else:
                    gate = tl.load(gate_rows, mask=mask_t, other=0.0)
                coarse, fine, all_coarse, all_fine = fade(gate)
                total = since_start(all_coarse, all_fine)
                if GIVES_K and anchors_ptr is not None:  # noqa: SIM102, for it is known when compiling
                    if step == 0:
                        slot = (anchors_before(seqlens_ptr, sequence, first, T, anchor) + span // anchor) * H + head
                        known = tl.load(anchors_ptr + slot * K * COLUMNS + offs_memory, mask=mask_memory, other=0.0)
                        passing = tl.sum(known * memory, 1)  # (BLOCK_K,)
                        if NORMALIZE:
                            known = tl.load(
                                anchors_ptr + slot * K * COLUMNS + offs_k * COLUMNS + V, mask=mask_k, other=0.0
                            )
                            passing += known * ones
                        # a column: a sum over its only axis does not compile for memories of Blackwell's tensor cores
                        crossing = (passing if BY_CHANNEL else tl.sum(passing[:, None], 0)) * total
            if GIVES_K:
                wanted = dot(v, tl.trans(dy))  # of pairs: how much more of them the loss wants
                dk = read_memory(v, tl.trans(memory), PRECISION)
                if NORMALIZE:
                    wanted += dden[None, :]
                    dk += ones[None, :]
            if BY_CHANNEL:
                left = until_end(coarse, fine, all_coarse[None, :], all_fine[None, :])
                writer, reader = times(k, left), times(q, since_start(coarse, fine) * scale)
                if GIVES_V:
                    dv = read_memory(writer, memory, PRECISION)
                    weights = weights_by_channel(q, k, coarse, fine, offs_t, LEVELS) * scale
                    dv = dot(tl.trans(weights).to(dy.dtype), dy, dv)
                if GIVES_K:
                    dk *= left
                    flow_tile = flow_ptr + here * K + (offs_t * (H * K))[:, None] + offs_k[None, :]
                    ending = tl.load(flow_tile, mask=mask_t[:, None] & mask_k[None, :], other=0.0)
                    beginning = tl.where((start + offs_t + 1 < length)[:, None], k.to(tl.float32) * dk, 0.0)
                    crossing = tl.where(step == 0, crossing, crossing - tl.sum(beginning, 0))
                    dgate = tl.cumsum(beginning, 0) - beginning + crossing[None, :]
                    inside = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
                    wanted *= scale
                    own = tl.sum(tl.where(offs_t[:, None] == offs_t[None, :], wanted, 0.0), 1)
                    dk += own[:, None] * q.to(tl.float32)
                    for level in tl.static_range(LEVELS):
                        factor = border_factor(coarse, fine, 1 << level)
                        late, early = times(q, factor), times(k, factor)
                        pairs = tl.where(tl.trans(late_and_early(offs_t, 1 << level)), wanted, 0.0).to(q.dtype)
                        from_late = dot(pairs, late)
                        inside += late.to(tl.float32) * dot(tl.trans(pairs), early) - early.to(tl.float32) * from_late
                        dk += factor * from_late
                    dgate += tl.cumsum(inside + ending, 0, reverse=True)
                    crossing += tl.sum(ending, 0)
                    dgate_tile = dgate_ptr + here * K + (offs_t * (H * K))[:, None] + offs_k[None, :]
                    tl.store(dgate_tile, dgate, mask=mask_t[:, None] & mask_k[None, :])
                memory *= total[:, None]
            else:
                weights = dot(k, tl.trans(q)) * scale
                seen = offs_t[:, None] <= offs_t[None, :]
                reader = times(q, scale)
                if GIVES_V:
                    dv = read_memory(k, memory, PRECISION)
                if FADES:
                    fades = tl.trans(fade_between(coarse, fine, tl.trans(seen)))
                    weights *= fades
                    left = until_end(coarse, fine, all_coarse, all_fine)
                    read = since_start(coarse, fine)
                    reader = times(q, (read * scale)[:, None])
                    if GIVES_V:
                        dv *= left[:, None]
                    if GIVES_K:
                        dk *= left[:, None]
                        pairs = tl.where(offs_t[:, None] < offs_t[None, :], weights * wanted, 0.0)
                        beginning = tl.where(start + offs_t + 1 < length, tl.sum(k.to(tl.float32) * dk, 1), 0.0)
                        ending = tl.zeros((BLOCK_T,), tl.float32)
                        for partial in range(block, flow_blocks, key_blocks):
                            flow_rows = flow_ptr + (tl.cast(partial, tl.int64) * B * T * H + here) + offs_t * H
                            ending += tl.load(flow_rows, mask=mask_t, other=0.0)
                        crossing = tl.where(step == 0, crossing, crossing - tl.sum(beginning, 0))
                        inside = tl.sum(pairs, 0) - tl.sum(pairs, 1)
                        dgate = tl.cumsum(inside + ending, 0, reverse=True) + crossing
                        dgate += tl.cumsum(beginning, 0) - beginning
                        crossing += tl.sum(ending, 0)
                        dgate_rows = dgate_ptr + block.to(tl.int64) * B * T * H + here + offs_t * H
                        tl.store(dgate_rows, dgate, mask=mask_t)
                        wanted *= fades
                    memory *= total
                if GIVES_V:
                    dv = dot(tl.where(seen, weights, 0.0).to(dy.dtype), dy, dv)
                if GIVES_K:
                    dk = dot(tl.where(seen, wanted * scale, 0.0).to(q.dtype), q, dk)
            if GIVES_K:
                dk_tile = dk_ptr + here * K + (offs_t * (H * K))[:, None] + offs_k[None, :]
                tl.store(dk_tile, dk.to(dk_ptr.dtype.element_ty), mask=mask_t[:, None] & mask_k[None, :])
            if GIVES_V:
                dv_tile = dv_ptr + here * V + (offs_t * (H * V))[:, None] + offs_v[None, :]
                tl.store(dv_tile, dv.to(dv_ptr.dtype.element_ty), mask=mask_t[:, None] & mask_v[None, :])
            memory = dot(tl.trans(reader), dy, memory)
            if NORMALIZE:
                if FADES:
                    ones *= total
                ones += tl.sum(reader.to(tl.float32) * dden[:, None], 0)

    if dstart_ptr is not None and GIVES_K and index == 0:
        dstart_ptr += (sequence * H + head) * K * COLUMNS
        tl.store(dstart_ptr + offs_memory, memory, mask=mask_memory)
        if NORMALIZE:
            tl.store(dstart_ptr + offs_k * COLUMNS + V, ones, mask=mask_k)


@triton.jit
def linear_attention_bwd_kv_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, dy_ptr, den_ptr, dden_ptr, flow_ptr, anchors_ptr, dk_ptr, dv_ptr, dgate_ptr,
    dend_ptr, parts_ptr, totals_ptr, dstart_ptr, seqlens_ptr,
    q_strides, k_strides, v_strides, gate_strides, dy_strides,
    scale, B, T, H, K: tl.constexpr, V: tl.constexpr, COLUMNS: tl.constexpr, segment, anchor, flow_blocks,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, ALL_K: tl.constexpr, ALL_V: tl.constexpr,
    LEVELS: tl.constexpr, BY_CHANNEL: tl.constexpr, NORMALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a segment of a head one program gives dk and dv if the memory fits into one block, (ALL_K, ALL_V).

    Else each program gives a block of dk or of dv. They stand side by side, so that what they share, q, k, v and dy,
    comes once from device memory and then from the cache.
    """
    WHOLE: tl.constexpr = BLOCK_K == ALL_K and BLOCK_V == ALL_V
    key_blocks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    blocks: tl.constexpr = 1 if WHOLE else key_blocks + (V + BLOCK_V - 1) // BLOCK_V
    block, head, sequence, row, first, length, index = locate(seqlens_ptr, T, H, segment, blocks)
    if (index * segment >= length) & (index > 0):
        return
    if WHOLE:
        _walk_back(
            q_ptr, k_ptr, v_ptr, gate_ptr, dy_ptr, den_ptr, dden_ptr, flow_ptr, anchors_ptr, dk_ptr, dv_ptr, dgate_ptr,
            dend_ptr, parts_ptr, totals_ptr, dstart_ptr, seqlens_ptr,
            q_strides, k_strides, v_strides, gate_strides, dy_strides,
            scale, B, T, H, K, V, COLUMNS, segment, anchor, flow_blocks,
            block, head, sequence, row, first, length, index,
            BLOCK_T, ALL_K, ALL_V, LEVELS, True, True, BY_CHANNEL, NORMALIZE, PRECISION,
        )  # fmt: skip
    elif block < key_blocks:
        _walk_back(
            q_ptr, k_ptr, v_ptr, gate_ptr, dy_ptr, den_ptr, dden_ptr, flow_ptr, anchors_ptr, dk_ptr, dv_ptr, dgate_ptr,
            dend_ptr, parts_ptr, totals_ptr, dstart_ptr, seqlens_ptr,
            q_strides, k_strides, v_strides, gate_strides, dy_strides,
            scale, B, T, H, K, V, COLUMNS, segment, anchor, flow_blocks,
            block, head, sequence, row, first, length, index,
            BLOCK_T, BLOCK_K, ALL_V, LEVELS, True, False, BY_CHANNEL, NORMALIZE, PRECISION,
        )  # fmt: skip
    else:
        _walk_back(
            q_ptr, k_ptr, v_ptr, gate_ptr, dy_ptr, den_ptr, dden_ptr, flow_ptr, anchors_ptr, dk_ptr, dv_ptr, dgate_ptr,
            dend_ptr, parts_ptr, totals_ptr, dstart_ptr, seqlens_ptr,
            q_strides, k_strides, v_strides, gate_strides, dy_strides,
            scale, B, T, H, K, V, COLUMNS, segment, anchor, flow_blocks,
            block - key_blocks, head, sequence, row, first, length, index,
            BLOCK_T, ALL_K, BLOCK_V, LEVELS, False, True, BY_CHANNEL, NORMALIZE, PRECISION,
        )  # fmt: skip


def run_backward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    y: Tensor, den: Tensor, dy: Tensor, dmemory: Tensor | None, scale: float, normalize: bool,
) -> list[Tensor | None]:  # fmt: skip
    """dq, dk, dv, dlog_decay and dstate, None where there is no such input."""
    (b, t, h, key), value = q.shape, v.shape[-1]
    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    kind, columns = kind_of(log_decay), value + normalize
    dq, dk, dv = (q.new_empty(x.shape) for x in (q, k, v))
    dstate = None if state is None else torch.empty_like(state, dtype=torch.float32)
    dden = torch.empty_like(den)
    common = dict(BY_CHANNEL=kind == "channel", NORMALIZE=normalize, PRECISION=precision())

    config_kv = dict(BACKWARD_KV[kind].pick(q.dtype, max(key, value)))
    block, chunk_kv = config_kv.pop("BLOCK"), chunk_of(config_kv.pop("BLOCK_T"), t)
    config = dict(BACKWARD_Q[kind].pick(q.dtype, max(key, value)))
    # the memory that is kept is that before a chunk of the other walk, so one of this walk must begin there too
    chunk = min(chunk_of(config.pop("BLOCK_T"), t), chunk_kv)
    block_k = min(config.pop("BLOCK"), power_of_two(key))
    flow_blocks = triton.cdiv(key, block_k)
    segment = segment_of(t, n * h * flow_blocks)
    anchor = min(ANCHOR, segment)
    flow = anchors = None
    if log_decay is not None:
        flow = q.new_empty((flow_blocks, b, t, h) if kind == "head" else (b, t, h, key), dtype=torch.float32)
    if log_decay is not None and not (t <= anchor and dmemory is None):  # nothing crosses the end of an only span
        num_anchors = n * triton.cdiv(t, anchor) if cu_seqlens is None else t // anchor + n
        anchors = q.new_empty(num_anchors, h, key, columns, dtype=torch.float32)
    parts, totals = run_states(k, v, log_decay, cu_seqlens, segment, columns)
    linear_attention_bwd_q_kernel[(n * triton.cdiv(t, segment) * h * flow_blocks,)](
        q, k, v, log_decay, y, dy, den, dden, dq, flow, anchors, state, parts, totals, cu_seqlens,
        *strides_of(q, k, v, log_decay, dy), scale, b, t, h, key, value, columns, segment, anchor,
        BLOCK_T=chunk, BLOCK_K=block_k, BLOCK_V=power_of_two(value), LEVELS=chunk.bit_length() - 1,
        LAST=chunk_kv, **common, **config,
    )  # fmt: skip

    all_k, all_v = power_of_two(key), power_of_two(value)
    block_k, block_v = min(block, all_k), min(block, all_v)
    key_blocks = triton.cdiv(key, block_k)
    blocks = 1 if (block_k, block_v) == (all_k, all_v) else key_blocks + triton.cdiv(value, block_v)
    dgates = None
    if kind == "head":
        dgates = q.new_empty(key_blocks, b, t, h, dtype=torch.float32)
    elif kind == "channel":
        dgates = q.new_empty(b, t, h, key, dtype=torch.float32)
    if log_decay is None:  # else the places of the anchors hold the segments that they were made in
        segment = segment_of(t, n * h * blocks)
        anchor = min(ANCHOR, segment)
    parts, totals = run_states(
        q, dy, log_decay, cu_seqlens, segment, columns, scale=scale, den=den, dden=dden, reverse=True
    )
    linear_attention_bwd_kv_kernel[(n * triton.cdiv(t, segment) * h * blocks,)](
        q, k, v, log_decay, dy, den, dden, flow, anchors, dk, dv, dgates, dmemory, parts, totals, dstate, cu_seqlens,
        *strides_of(q, k, v, log_decay, dy), scale, b, t, h, key, value, columns, segment, anchor, flow_blocks,
        BLOCK_T=chunk_kv, BLOCK_K=block_k, BLOCK_V=block_v, ALL_K=all_k, ALL_V=all_v,
        LEVELS=chunk_kv.bit_length() - 1, **common, **config_kv,
    )  # fmt: skip
    if kind == "head":
        dgates = dgates[0] if key_blocks == 1 else dgates.sum(0)
    return [dq, dk, dv, dgates, dstate]
