"""The one walk along time that gives the output and, with the roles of its operands exchanged, every gradient.

y  = walk(q, k, v)                forward in time, from the state
dq = walk(dy, v, k)               forward in time, from the state transposed
dk = walk(v, dy, q, reverse)      backward in time, from the gradient of the last state, transposed
dv = walk(k, q, dy, reverse)      backward in time, from the gradient of the last state
"""

import triton
import triton.language as tl

from ._tiles import coarse_and_fine, dot, read_memory


@triton.jit
def linear_attention_walk_kernel(
    q_ptr, k_ptr, v_ptr, y_ptr, gate_ptr, intra_ptr, start_ptr, end_ptr, norm_ptr, own_ptr, flow_ptr, states_ptr,
    dgate_ptr, seqlens_ptr,
    q_stride_b, q_stride_t, q_stride_h, k_stride_b, k_stride_t, k_stride_h, v_stride_b, v_stride_t, v_stride_h,
    gate_stride_b, gate_stride_t, gate_stride_h, own_stride_b, own_stride_t, own_stride_h,
    memory_stride_k, memory_stride_v, memory_size, scale, eps, num_tokens, T, H, K, V,
    BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
    REVERSE: tl.constexpr, DECAY: tl.constexpr, NORM: tl.constexpr, FLOW: tl.constexpr,
    HAS_START: tl.constexpr, HAS_END: tl.constexpr, HAS_SEQLENS: tl.constexpr,
):  # fmt: skip
    """One program: a sequence, a head and BLOCK_V columns; the memory (BLOCK_K, BLOCK_V) stays in registers.

    DECAY is "none", "head", "key" (of the contracted channels; weights inside a chunk come from `intra`) or "value"
    (of the columns; what a chunk reads from its own earlier tokens comes from `intra`).
    NORM is "none", "value" (sum the weights in a column of ones and divide by it) or "key" (operands are one channel
    wider: `norm` holds that channel of q, or in reverse of k; that of the other operand is one).
    FLOW is "none", "store" (own * y without each token's own pair, and the memory before every chunk) or "gather"
    (with what another walk stored, the gradient of log_decay).
    """
    num_blocks = tl.cdiv(V, BLOCK_V)
    block = tl.program_id(0) % num_blocks
    head = (tl.program_id(0) // num_blocks % H).to(tl.int64)
    sequence = (tl.program_id(0) // num_blocks // H).to(tl.int64)
    if HAS_SEQLENS:
        row = sequence * 0
        first = tl.load(seqlens_ptr + sequence).to(tl.int64)
        first_slot = first // BLOCK_T + sequence  # every sequence has room for its last, shorter chunk
        length = (tl.load(seqlens_ptr + sequence + 1) - first).to(tl.int32)
    else:
        row = sequence
        first = sequence * 0
        first_slot = sequence * tl.cdiv(T, BLOCK_T)
        length = T
    num_chunks = tl.cdiv(length, BLOCK_T)
    offs_t = tl.arange(0, BLOCK_T)
    offs_k = tl.arange(0, BLOCK_K)
    offs_v = block * BLOCK_V + tl.arange(0, BLOCK_V)
    mask_k = offs_k < K
    mask_v = offs_v < V
    # With `apart` a token's own pair, which never fades, is left out of `weights` and added to y by itself.
    apart: tl.constexpr = FLOW != "none" or DECAY == "key" or DECAY == "value"
    later = offs_t[:, None] > offs_t[None, :]
    seen = offs_t[:, None] < offs_t[None, :] if REVERSE else later
    if not apart:
        seen = seen | (offs_t[:, None] == offs_t[None, :])

    start = (sequence * H + head) * memory_size
    mask_memory = mask_k[:, None] & mask_v[None, :]
    offs_memory = start + offs_k[:, None] * memory_stride_k + offs_v[None, :] * memory_stride_v
    memory = tl.zeros((BLOCK_K, BLOCK_V), tl.float32)
    if HAS_START:
        memory += tl.load(start_ptr + offs_memory, mask=mask_memory, other=0.0).to(tl.float32)
    if NORM == "value":  # the column of ones comes after the last of v
        offs_norm = start + offs_k * memory_stride_k + V * memory_stride_v
        mask_norm = mask_k
        memory_norm = tl.zeros((BLOCK_K,), tl.float32)
    else:
        offs_norm = start + K * memory_stride_k + offs_v * memory_stride_v
        mask_norm = mask_v
        memory_norm = tl.zeros((BLOCK_V,), tl.float32)
    if NORM != "none" and HAS_START:
        memory_norm += tl.load(start_ptr + offs_norm, mask=mask_norm, other=0.0).to(tl.float32)

    q_ptr += row * q_stride_b + first * q_stride_t + head * q_stride_h
    k_ptr += row * k_stride_b + first * k_stride_t + head * k_stride_h
    v_ptr += row * v_stride_b + first * v_stride_t + head * v_stride_h
    if DECAY != "none":
        gate_ptr += row * gate_stride_b + first * gate_stride_t + head * gate_stride_h
    if FLOW != "none":
        own_ptr += row * own_stride_b + first * own_stride_t + head * own_stride_h
    token = (row * T + first) * H + head  # of the contiguous (b, t, h, ...) tensors; the next one is H further

    for step in range(num_chunks):
        chunk = num_chunks - 1 - step if REVERSE else step
        now = chunk * BLOCK_T + offs_t
        mask_t = now < length
        now = now.to(tl.int64)
        here = token + now * H
        mask_tk = mask_t[:, None] & mask_k[None, :]
        mask_tv = mask_t[:, None] & mask_v[None, :]
        q = tl.load(q_ptr + now[:, None] * q_stride_t + offs_k[None, :], mask=mask_tk, other=0.0)
        k = tl.load(k_ptr + now[:, None] * k_stride_t + offs_k[None, :], mask=mask_tk, other=0.0)
        v = tl.load(v_ptr + now[:, None] * v_stride_t + offs_v[None, :], mask=mask_tv, other=0.0)
        norm_q = mask_t.to(tl.float32)
        norm_k = mask_t.to(tl.float32)
        if NORM == "key":
            norm = tl.load(norm_ptr + here, mask=mask_t, other=0.0)
            norm_q = norm_q if REVERSE else norm
            norm_k = norm * scale if REVERSE else norm_k
        if REVERSE:
            k = (k.to(tl.float32) * scale).to(k.dtype)

        # factors of what is read from the memory, of what is written to it, and of the memory itself
        if DECAY == "head":
            coarse, fine = coarse_and_fine(tl.load(gate_ptr + now * gate_stride_t, mask=mask_t, other=0.0))
            since_coarse = tl.cumsum(coarse, 0)
            since_fine = tl.cumsum(fine, 0)
            all_coarse = tl.sum(coarse, 0)
            all_fine = tl.sum(fine, 0)
            since_start = tl.exp2(since_coarse + since_fine)  # (BLOCK_T,)
            until_end = tl.exp2((all_coarse - since_coarse) + (all_fine - since_fine))
            total = tl.exp2(all_coarse + all_fine)
        if DECAY == "key":
            gates = tl.load(gate_ptr + now[:, None] * gate_stride_t + offs_k[None, :], mask=mask_tk, other=0.0)
        if DECAY == "value":
            gates = tl.load(gate_ptr + now[:, None] * gate_stride_t + offs_v[None, :], mask=mask_tv, other=0.0)
        if DECAY == "key" or DECAY == "value":
            coarse, fine = coarse_and_fine(gates)
            since_coarse = tl.cumsum(coarse, 0)
            since_fine = tl.cumsum(fine, 0)
            all_coarse = tl.sum(coarse, 0)[None, :]
            all_fine = tl.sum(fine, 0)[None, :]
            since_start = tl.exp2(since_coarse + since_fine)  # (BLOCK_T, BLOCK_K or BLOCK_V)
            until_end = tl.exp2((all_coarse - since_coarse) + (all_fine - since_fine))
            total = tl.exp2(all_coarse + all_fine)
        if DECAY != "none":
            read = until_end if REVERSE else since_start
            write = since_start if REVERSE else until_end

        # what the tokens read from before the chunk
        if DECAY == "key":
            reader = (q.to(tl.float32) * read).to(q.dtype)
            inter = read_memory(reader, memory, PRECISION)
        else:
            inter = read_memory(q, memory, PRECISION)
        if NORM == "key":
            inter += norm_q[:, None] * memory_norm[None, :]
        if DECAY == "head":
            inter *= read[:, None]
        if DECAY == "value":
            inter *= read

        # what they read from each other, and from themselves
        if apart:
            own = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)
            if NORM == "key":
                own += norm_q * norm_k
        if DECAY == "value":
            offs_intra = here[:, None] * V + offs_v[None, :]
            intra = tl.load(intra_ptr + offs_intra, mask=mask_tv, other=0.0)
            intra = intra * scale if REVERSE else intra
        else:
            if DECAY == "key":
                mask_pairs = mask_t[:, None] & (offs_t[None, :] >= 0)
                pairs = tl.load(intra_ptr + here[:, None] * BLOCK_T + offs_t[None, :], mask=mask_pairs, other=0.0)
                weights = pairs.to(tl.float32)
                weights = tl.trans(weights) * scale if REVERSE else weights
            else:
                weights = dot(q, tl.trans(k))
                if NORM == "key":
                    weights += norm_q[:, None] * norm_k[None, :]
            if DECAY == "head":
                distance = since_coarse[:, None] - since_coarse[None, :]
                distance += since_fine[:, None] - since_fine[None, :]
                distance = -distance if REVERSE else distance
                weights *= tl.exp2(tl.where(seen, distance, 0.0))
            weights = tl.where(seen, weights, 0.0)
            intra = dot(weights.to(v.dtype), v)
        if not REVERSE:
            inter *= scale
            intra *= scale
            if apart:
                own *= scale

        if FLOW != "none":
            partner = tl.load(own_ptr + now[:, None] * own_stride_t + offs_v[None, :], mask=mask_tv, other=0.0)
            partner = partner.to(tl.float32)
            slot = ((first_slot + chunk) * H + head) * memory_size
            offs_state = slot + offs_k[:, None] * V + offs_v[None, :]
            offs_state_norm = slot + K * V + offs_v
            offs_wide = here[:, None] * V + offs_v[None, :]
            offs_narrow = block * num_tokens * H + here
        if FLOW == "store":
            tl.store(states_ptr + offs_state, memory.to(states_ptr.dtype.element_ty), mask=mask_memory)
            if NORM == "key":
                tl.store(states_ptr + offs_state_norm, memory_norm.to(states_ptr.dtype.element_ty), mask=mask_v)
            flow = partner * (inter + intra)
            if DECAY == "head":
                tl.store(flow_ptr + offs_narrow, tl.sum(flow, 1), mask=mask_t)
            else:
                tl.store(flow_ptr + offs_wide, flow, mask=mask_tv)
        if FLOW == "gather":
            before = tl.load(states_ptr + offs_state, mask=mask_memory, other=0.0).to(tl.float32)
            across = tl.sum(before * memory, 0)  # (BLOCK_V,)
            if NORM == "key":
                before_norm = tl.load(states_ptr + offs_state_norm, mask=mask_v, other=0.0).to(tl.float32)
                across += before_norm * memory_norm
            earlier = later.to(tl.float32)
            if DECAY == "head":
                flow = tl.load(flow_ptr + offs_narrow, mask=mask_t, other=0.0) - tl.sum(partner * intra, 1)
                dgate = tl.sum(tl.where(later, 0.0, flow[None, :]), 1)
                dgate += tl.sum(earlier * tl.sum(partner * inter, 1)[None, :], 1)
                dgate += tl.sum(across, 0) * total
                tl.store(dgate_ptr + offs_narrow, dgate, mask=mask_t)
            else:
                flow = tl.load(flow_ptr + offs_wide, mask=mask_tv, other=0.0) - partner * intra
                dgate = dot(1.0 - earlier, flow) + dot(earlier, partner * inter)
                dgate += across[None, :] * total
                tl.store(dgate_ptr + offs_wide, dgate, mask=mask_tv)

        y = inter + intra
        if apart:
            y += own[:, None] * v.to(tl.float32)
        if NORM == "value":
            if DECAY == "key":
                den = tl.sum(reader.to(tl.float32) * memory_norm[None, :], 1)
            else:
                den = tl.sum(q.to(tl.float32) * memory_norm[None, :], 1)
            if DECAY == "head":
                den *= read
            den = (den + tl.sum(weights, 1)) * scale + eps
            if apart:
                den += own
            y /= den[:, None]
            tl.store(norm_ptr + here, den, mask=mask_t & (block == 0))
        tl.store(y_ptr + here[:, None] * V + offs_v[None, :], y.to(y_ptr.dtype.element_ty), mask=mask_tv)

        # the memory after the chunk
        if DECAY == "head":
            v = (v.to(tl.float32) * write[:, None]).to(v.dtype)
            if NORM == "value":
                norm_k *= write
            memory *= total
            memory_norm *= total
        if DECAY == "value":
            v = (v.to(tl.float32) * write).to(v.dtype)
            memory *= total
            memory_norm *= tl.sum(total, 0)
        if DECAY == "key":
            k = (k.to(tl.float32) * write).to(k.dtype)
            memory *= tl.trans(total)
            if NORM == "value":
                memory_norm *= tl.sum(total, 0)
        if NORM == "value":
            memory_norm += tl.sum(k.to(tl.float32) * norm_k[:, None], 0)
        if NORM == "key":
            memory_norm += tl.sum(v.to(tl.float32) * norm_k[:, None], 0)
        memory += dot(tl.trans(k), v)

    if HAS_END:
        tl.store(end_ptr + offs_memory, memory, mask=mask_memory)
        if NORM == "value":
            tl.store(end_ptr + offs_norm, memory_norm, mask=mask_norm & (block == 0))
        if NORM == "key":
            tl.store(end_ptr + offs_norm, memory_norm, mask=mask_norm)
