"""delta_rule in PyTorch: chunks of tokens as matrix products, the memory carried from chunk to chunk.

In a chunk that begins with the memory S, what is wrong under the key of token i is

    E_i = v_i - k_i fade_i S - sum_{j < i} weight_ij beta_j E_j        weight_ij = k_i fade_ij k_j

So E = U (V - K~ S), where U inverts a unit lower triangular matrix, and token j writes beta_j E_j: the rest is linear
attention with these values. Everything but the walk of S is formed for all chunks of a block at once; a step of the
walk is one product, S' = M S + B. beta is never divided by, so it may be zero.

The backward pass keeps the memory at the start of every segment of time and forms everything else again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._autograd import differentiable
from .._blocks import Place, blocks, new_outputs, segments
from .._decays import Decay, Faded, load_decays
from .._delta import inverse, room_for_walk, walk, walk_back
from .._packed import over_sequences
from . import SHAPES


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> list[Tensor]:  # fmt: skip
    """y, the memory after the last token, the memory before each segment but the first."""
    return new_outputs(q, v, cu_seqlens)


class _Chunks(NamedTuple):
    """What the chunks of a block are before S is known; N chunks of c tokens.

    beta (N, c, 1); reading, asking: q and k (N, c, k), which read S; writing: k, which writes into the next S. The
    scale is in none of them: y is multiplied by it when it is stored, dy when it is loaded.
    inverted: U (N, c, c). errors, corrections: U V and U K~, so that E = errors - corrections S.
    step: M. memories (n + 1, g, k, v): B, in the place of the memory after the chunk. scores, likeness: weights of q
    and of k on the earlier k, lower and strictly lower.
    """

    beta: Tensor
    decay: Decay
    reading: Faded
    asking: Faded
    writing: Faded
    inverted: Tensor
    errors: Tensor
    corrections: Tensor
    step: Tensor
    memories: Tensor
    scores: Tensor
    likeness: Tensor

    def wrong(self, memory: Tensor) -> Tensor:
        """E, from the memories before the chunks. Uses up `errors`."""
        return self.errors.baddbmm_(self.corrections, memory, alpha=-1)


def _prepare(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Decay, place: Place) -> _Chunks:
    factors = ((beta[..., None], 1.0), (q, decay.reader), (k, decay.reader), (v, 1.0))
    beta, queries, asks, v = (place.load(x, factor) for x, factor in factors)
    keys = asks  # unless decay is mild, k reads and writes as it is
    if decay.reader is not decay.writer:
        keys = place.load(k, decay.writer)
    reading, asking, writing = decay.reading(queries), decay.reading(asks), decay.writing(keys)
    likeness = decay.weights(asking, writing, diagonal=-1)
    inverted = inverse(likeness * beta.mT)
    errors, corrections = torch.bmm(inverted, v), torch.bmm(inverted, asking.faded)
    weighed = (writing.faded * beta).mT
    step = torch.bmm(weighed, corrections).neg_()
    decay.land(step.unflatten(0, place.counts))
    step.diagonal(dim1=1, dim2=2).add_(1.0 if decay.total is None else decay.total.flatten(0, 1)[..., 0])
    memories, after, _ = room_for_walk(place.counts, k.shape[-1], v.shape[-1], v)
    torch.bmm(weighed, errors, out=after)
    decay.land(memories[1:])
    scores = decay.weights(reading, writing)
    return _Chunks(
        beta, decay, reading, asking, writing, inverted, errors, corrections, step, memories, scores, likeness
    )


def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float
) -> list[Tensor]:
    if q.shape[1] == 1:
        return _step(q, k, v, beta, log_decay, state, scale)
    outputs = _allocate(q, k, v, beta, log_decay, state, None, scale)
    y, memory, carries = outputs
    b, t, h, width = q.shape
    memory.zero_() if state is None else memory.copy_(state)
    for block in blocks(b, t, h, width, v.shape[-1]):
        carry = memory[block].flatten(0, 1)  # (g, k, v)
        places = segments(block, t, memory.dtype)
        for place, decay in zip(places, load_decays(log_decay, places), strict=True):
            if place.index:
                carries[place.index - 1][block] = carry.view_as(memory[block])
            chunks = _prepare(q, k, v, beta, decay, place)
            memories = walk(chunks.step, chunks.memories, carry, decay)
            before, carry = memories[:-1].flatten(0, 1), memories[-1]
            written = chunks.wrong(before).mul_(chunks.beta)
            result = torch.bmm(chunks.reading.faded, before).baddbmm_(chunks.scores, written)
            place.store(y, result, scale)
        memory[block] = carry.view_as(memory[block])
    return outputs


def _step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float
) -> list[Tensor]:
    """One token: the equation itself."""
    compute = torch.promote_types(q.dtype, torch.float32)
    b, _, h, width = q.shape
    query, key, value = (x.to(compute).reshape(b * h, 1, -1) for x in (q, k, v))
    share = beta.to(compute).reshape(b * h, 1, 1)
    if state is None:
        memory = torch.bmm(key.mT, value * share)
    else:
        memory = state.to(compute).reshape(b * h, width, -1)
        if log_decay is not None:
            memory = memory * log_decay.to(compute).exp().reshape(b * h, -1, 1)
        memory = torch.baddbmm(memory, key.mT, torch.baddbmm(value, key, memory, alpha=-1).mul_(share))
    y = torch.bmm(query, memory).mul_(scale).view(b, 1, h, -1)
    memory = memory.view(b, h, width, -1)
    return [y.to(q.dtype), memory, y.new_empty(0, *memory.shape)]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float,
) -> list[Tensor | None]:  # fmt: skip
    y, memory, carries = kept
    dy = torch.zeros_like(y) if grads[0] is None else grads[0]
    dstate = torch.zeros_like(memory) if grads[1] is None else grads[1].clone()
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    dbeta = torch.empty_like(beta, dtype=memory.dtype)
    dlog_decay = None if log_decay is None else torch.empty_like(log_decay, dtype=memory.dtype)
    b, t, h, width = q.shape
    for block in blocks(b, t, h, width, v.shape[-1]):
        dcarry = dstate[block].flatten(0, 1)
        places = segments(block, t, memory.dtype)[::-1]
        for place, decay in zip(places, load_decays(log_decay, places), strict=True):
            carry = carries[place.index - 1] if place.index else state
            carry = torch.zeros_like(dcarry) if carry is None else carry[block].flatten(0, 1).to(memory.dtype)
            chunks = _prepare(q, k, v, beta, decay, place)
            dqueries, *found, dgates, dcarry = _chunks_backward(chunks, place.load(dy, scale), carry, dcarry)
            place.store(dq, dqueries, decay.reader)
            for x, dx in zip((dk, dv, dbeta[..., None]), found, strict=True):
                place.store(x, dx)
            if dlog_decay is not None:
                place.store(dlog_decay if dlog_decay.ndim == 4 else dlog_decay[..., None], dgates)
        dstate[block] = dcarry.view_as(dstate[block])
    return [dq, dk, dv, dbeta, dlog_decay, None if state is None else dstate]


def _chunks_backward(
    chunks: _Chunks, dy: Tensor, carry: Tensor, dcarry: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of one block: of q as it was loaded, dk, dv, dbeta, dlog_decay, and that of the memory before it.

    The memory has two readers, q with the gradient dy and k with -dv, and one writer, k with the values beta E.
    """
    decay, beta = chunks.decay, chunks.beta
    memories = walk(chunks.step, chunks.memories, carry, decay)
    before = memories[:-1].flatten(0, 1)
    dwritten = torch.bmm(chunks.scores.mT, dy)
    dmemories, _, dbefore = room_for_walk((len(memories) - 1, len(dcarry)), *dcarry.shape[1:], dcarry)
    weighed = dwritten * beta
    torch.bmm(chunks.reading.faded.mT, dy, out=dbefore).baddbmm_(chunks.corrections.mT, weighed, alpha=-1)
    walk_back(chunks.step, dmemories, dcarry)
    dafter = decay.land(dmemories[1:]).flatten(0, 1)
    dcarry = dmemories[0]
    decay.enter(dcarry, out=dcarry)

    dwritten.baddbmm_(chunks.writing.faded, dafter)
    dv = torch.bmm(chunks.inverted.mT, torch.mul(dwritten, beta, out=weighed))
    errors = chunks.wrong(before)
    written = errors * beta
    dbeta = errors.mul_(dwritten.baddbmm_(chunks.likeness.mT, dv, alpha=-1)).sum(-1, keepdim=True)
    dq, dasked, dk = torch.bmm(dy, before.mT), torch.bmm(dv, before.mT).neg_(), torch.bmm(written, dafter.mT)
    dscores, dlikeness = torch.bmm(dy, written.mT).tril_(), torch.bmm(dv, written.mT).neg_().tril_(-1)
    dlog_decay = decay.backward(
        [(chunks.reading, dq), (chunks.asking, dasked)], [(chunks.writing, dk)],
        [[(chunks.scores, dscores)], [(chunks.likeness, dlikeness)]], memories, dmemories,
    )  # fmt: skip
    return dq, decay.joined(dasked, dk), dv, dbeta, dlog_decay, dcarry


_run = differentiable(
    "delta_rule_torch", SHAPES, *over_sequences(SHAPES, _allocate, _forward, _backward), num_outputs=2
)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, memory, *_ = _run(q, k, v, beta, log_decay, state, cu_seqlens, scale)
    return y, memory
