"""Weights between the tokens of a chunk where every key channel fades on its own.

The weight exp(c_i - c_j) of a channel does not factor safely over a chunk. So the chunk is halved again and again:
between a late and an early half the reference is their border, where both exponents are <= 0 whatever the decay.
"""

import triton
import triton.language as tl

from ._tiles import coarse_and_fine, dot


@triton.jit
def border_factor(since_coarse, since_fine, HALF: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr):
    """What is left between each token and the last token of the early half of its pair of runs, (BLOCK_T, BLOCK_K)."""
    place = tl.arange(0, 2 * HALF)[None, :, None]
    coarse = tl.reshape(since_coarse, (BLOCK_T // (2 * HALF), 2 * HALF, BLOCK_K))
    fine = tl.reshape(since_fine, (BLOCK_T // (2 * HALF), 2 * HALF, BLOCK_K))
    border_coarse = tl.sum(tl.where(place == HALF - 1, coarse, 0.0), 1)[:, None, :]
    border_fine = tl.sum(tl.where(place == HALF - 1, fine, 0.0), 1)[:, None, :]
    distance = (coarse - border_coarse) + (fine - border_fine)
    factor = tl.exp2(tl.where(place >= HALF, distance, -distance))
    return tl.reshape(factor, (BLOCK_T, BLOCK_K))


@triton.jit
def late_and_early(offs_t, HALF: tl.constexpr):
    """Pairs (BLOCK_T, BLOCK_T) whose query is in the late and whose key in the early half of the same two runs."""
    run = offs_t // HALF
    return (run[:, None] == run[None, :] + 1) & (run[:, None] % 2 == 1)


@triton.jit
def locate(seqlens_ptr, T, H, BLOCK_T: tl.constexpr, HAS_SEQLENS: tl.constexpr):
    """Row of the batch, head, first token of the chunk, and of its sequence's end, for this program."""
    chunks = tl.cdiv(T, BLOCK_T)
    head = (tl.program_id(0) % H).to(tl.int64)
    chunk = tl.program_id(0) // H % chunks
    sequence = (tl.program_id(0) // H // chunks).to(tl.int64)
    if HAS_SEQLENS:
        row = sequence * 0
        first = tl.load(seqlens_ptr + sequence).to(tl.int64)
        end = tl.load(seqlens_ptr + sequence + 1).to(tl.int64)
    else:
        row = sequence
        first = sequence * 0
        end = first + T
    return row, head, first + chunk * BLOCK_T, end


@triton.jit
def linear_attention_fwd_scores_kernel(
    q_ptr, k_ptr, gate_ptr, scores_ptr, seqlens_ptr,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h,
    gate_stride_b, gate_stride_t, gate_stride_h, T, H, K,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, LEVELS: tl.constexpr,
    HAS_SEQLENS: tl.constexpr,
):  # fmt: skip
    """One program: a chunk of a head; its weights (BLOCK_T, BLOCK_T) before scaling, a token with itself left out."""
    row, head, start, end = locate(seqlens_ptr, T, H, BLOCK_T, HAS_SEQLENS)
    if start >= end:
        return
    offs_t = tl.arange(0, BLOCK_T)
    now = start + offs_t
    mask_t = now < end
    q_ptr += row * q_stride_b + head * q_stride_h
    k_ptr += row * k_stride_b + head * k_stride_h
    gate_ptr += row * gate_stride_b + head * gate_stride_h
    scores = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    for start_k in range(0, K, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        mask = mask_t[:, None] & (offs_k < K)[None, :]
        q = tl.load(q_ptr + now[:, None] * q_stride_t + offs_k[None, :], mask=mask, other=0.0)
        k = tl.load(k_ptr + now[:, None] * k_stride_t + offs_k[None, :], mask=mask, other=0.0)
        gate = tl.load(gate_ptr + now[:, None] * gate_stride_t + offs_k[None, :], mask=mask, other=0.0)
        coarse, fine = coarse_and_fine(gate)
        since_coarse = tl.cumsum(coarse, 0)
        since_fine = tl.cumsum(fine, 0)
        for level in tl.static_range(LEVELS):
            factor = border_factor(since_coarse, since_fine, 1 << level, BLOCK_T, BLOCK_K)
            late = (q.to(tl.float32) * factor).to(q.dtype)
            early = (k.to(tl.float32) * factor).to(k.dtype)
            pairs = dot(late, tl.trans(early))
            scores += tl.where(late_and_early(offs_t, 1 << level), pairs, 0.0)
    offs = ((row * T + now) * H + head)[:, None] * BLOCK_T + offs_t[None, :]
    tl.store(scores_ptr + offs, scores.to(scores_ptr.dtype.element_ty), mask=mask_t[:, None] & (offs_t[None, :] >= 0))


@triton.jit
def linear_attention_bwd_scores_kernel(
    q_ptr, k_ptr, v_ptr, gate_ptr, dy_ptr, norm_ptr, dq_ptr, dk_ptr, seqlens_ptr,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    gate_stride_b, gate_stride_t, gate_stride_h, T, H, K, V,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, LEVELS: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_SEQLENS: tl.constexpr,
):  # fmt: skip
    """One program: a chunk of a head; what its tokens give each other of dq and dk, a token with itself left out."""
    row, head, start, end = locate(seqlens_ptr, T, H, BLOCK_T, HAS_SEQLENS)
    if start >= end:
        return
    offs_t = tl.arange(0, BLOCK_T)
    now = start + offs_t
    mask_t = now < end
    here = (row * T + now) * H + head
    q_ptr += row * q_stride_b + head * q_stride_h
    k_ptr += row * k_stride_b + head * k_stride_h
    v_ptr += row * v_stride_b + head * v_stride_h
    gate_ptr += row * gate_stride_b + head * gate_stride_h
    dscores = tl.zeros((BLOCK_T, BLOCK_T), tl.float32)
    for start_v in range(0, V, BLOCK_V):
        offs_v = start_v + tl.arange(0, BLOCK_V)
        mask = mask_t[:, None] & (offs_v < V)[None, :]
        v = tl.load(v_ptr + now[:, None] * v_stride_t + offs_v[None, :], mask=mask, other=0.0)
        dy = tl.load(dy_ptr + here[:, None] * V + offs_v[None, :], mask=mask, other=0.0)
        dscores += dot(dy, tl.trans(v))
    if HAS_NORM:
        dscores += tl.load(norm_ptr + here, mask=mask_t, other=0.0)[:, None]
    for start_k in range(0, K, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        mask = mask_t[:, None] & (offs_k < K)[None, :]
        q = tl.load(q_ptr + now[:, None] * q_stride_t + offs_k[None, :], mask=mask, other=0.0)
        k = tl.load(k_ptr + now[:, None] * k_stride_t + offs_k[None, :], mask=mask, other=0.0)
        gate = tl.load(gate_ptr + now[:, None] * gate_stride_t + offs_k[None, :], mask=mask, other=0.0)
        coarse, fine = coarse_and_fine(gate)
        since_coarse = tl.cumsum(coarse, 0)
        since_fine = tl.cumsum(fine, 0)
        dq = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
        dk = tl.zeros((BLOCK_T, BLOCK_K), tl.float32)
        for level in tl.static_range(LEVELS):
            factor = border_factor(since_coarse, since_fine, 1 << level, BLOCK_T, BLOCK_K)
            late = (q.to(tl.float32) * factor).to(q.dtype)
            early = (k.to(tl.float32) * factor).to(k.dtype)
            pairs = tl.where(late_and_early(offs_t, 1 << level), dscores, 0.0).to(q.dtype)
            dq += factor * dot(pairs, early)
            dk += factor * dot(tl.trans(pairs), late)
        tl.store(dq_ptr + here[:, None] * K + offs_k[None, :], dq, mask=mask)
        tl.store(dk_ptr + here[:, None] * K + offs_k[None, :], dk, mask=mask)
