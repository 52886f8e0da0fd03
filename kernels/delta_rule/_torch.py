"""delta_rule in PyTorch: chunks of tokens as matrix products, the memory carried from chunk to chunk.

In a chunk that begins with the memory S, token i writes under its key

    F_i = beta_i (v_i - k_i fade_i S - sum_{j < i} weight_ij F_j)        weight_ij = k_i fade_ij k_j

So F = U (V + A S), where the rows of V are beta_i v_i, those of A are -beta_i k_i fade_i, and U inverts a unit lower
triangular matrix; the rest is linear attention with F as its values. beta is multiplied into k and v where they are
loaded, and never divided by, so it may be zero.

The backward pass keeps U and the memory at the start of every segment of time, and forms everything else again.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._autograd import differentiable
from .._blocks import Place, blocks, new_outputs, new_weights, segments
from .._decays import Decay, Faded, gradients_of_memories, load_decays
from .._delta import inverse, walk, walk_back
from .._packed import over_sequences
from . import SHAPES


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> list[Tensor]:  # fmt: skip
    """y, the memory after the last token, the memory before each segment but the first, U."""
    return [*new_outputs(q, v, cu_seqlens), new_weights(q)]


class _Chunks(NamedTuple):
    """What is known of the N chunks of c tokens of a block without their memories.

    share: beta (N, c, 1). reading, asking: q and -beta k (N, c, k), which read S; writing: k, which writes into the
    next S. The scale is in none of them: y is multiplied by it when it is stored, dy when it is loaded. scores,
    crossed: weights of reading and of asking on writing, lower and strictly lower triangular.
    """

    share: Tensor
    reading: Faded
    asking: Faded
    writing: Faded
    scores: Tensor
    crossed: Tensor


def _prepare(q: Tensor, k: Tensor, beta: Tensor, decay: Decay, place: Place) -> _Chunks:
    share = place.load(beta[..., None])
    factors = ((q, decay.reader), (k, -share * decay.reader), (k, decay.writer))
    queries, asks, keys = (place.load(x, factor) for x, factor in factors)
    reading, asking, writing = decay.reading(queries), decay.reading(asks), decay.writing(keys)
    scores, crossed = decay.weights(reading, writing), decay.weights(asking, writing, diagonal=-1)
    return _Chunks(share, reading, asking, writing, scores, crossed)


def _walk(
    chunks: _Chunks, values: Tensor, inverted: Tensor, carry: Tensor, decay: Decay
) -> tuple[Tensor, Tensor, Tensor]:
    """F, which uses up the values; memories (n + 1, g, k, v); keys as the next chunk reads them."""
    memories = carry.new_zeros(len(values) // len(carry) + 1, *carry.shape)
    decay.enter(carry, out=memories[0])
    landing = decay.landing(chunks.writing.faded)
    return walk(memories, decay, chunks.asking.faded, inverted, values, landing), memories, landing


def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float
) -> list[Tensor]:
    if q.shape[1] == 1:
        return _step(q, k, v, beta, log_decay, state, scale)
    outputs = _allocate(q, k, v, beta, log_decay, state, None, scale)
    y, memory, carries, solved = outputs
    b, t, h, width = q.shape
    memory.zero_() if state is None else memory.copy_(state)
    for block in blocks(b, t, h, width, v.shape[-1]):
        carry = memory[block].flatten(0, 1)  # (g, k, v)
        places = segments(block, t, memory.dtype)
        for place, decay in zip(places, load_decays(log_decay, places), strict=True):
            if place.index:
                carries[place.index - 1][block] = carry.view_as(memory[block])
            chunks = _prepare(q, k, beta, decay, place)
            inverted = inverse(chunks.crossed)
            place.keep(solved, inverted)
            written, memories, _ = _walk(chunks, place.load(v, chunks.share), inverted, carry, decay)
            before, carry = memories[:-1].flatten(0, 1), memories[-1]
            place.store(y, torch.bmm(chunks.reading.faded, before).baddbmm_(chunks.scores, written), scale)
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
    return [y.to(q.dtype), memory, y.new_empty(0, *memory.shape), memory.new_ones(1, b, h, 1, 1)]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float,
) -> list[Tensor | None]:  # fmt: skip
    y, memory, carries, solved = kept
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
            chunks = _prepare(q, k, beta, decay, place)
            dqueries, *found, dgates, dcarry = _chunks_backward(
                chunks, place.load(v), place.kept(solved), place.load(dy, scale), carry, dcarry, decay
            )
            place.store(dq, dqueries, decay.reader)
            for x, dx, factor in zip((dk, dv, dbeta[..., None]), found, (1.0, chunks.share, 1.0), strict=True):
                place.store(x, dx, factor)
            if dlog_decay is not None:
                place.store(dlog_decay if dlog_decay.ndim == 4 else dlog_decay[..., None], dgates)
        dstate[block] = dcarry.view_as(dstate[block])
    return [dq, dk, dv, dbeta, dlog_decay, None if state is None else dstate]


def _chunks_backward(
    chunks: _Chunks, v: Tensor, inverted: Tensor, dy: Tensor, carry: Tensor, dcarry: Tensor, decay: Decay
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of one block: of q as it was loaded, of k, of beta v, of beta, of log_decay, and of the memory before.

    The memory has two readers, q with the gradient dy and -beta k with that of beta v, and one writer, k with F.
    """
    share, reading, asking, writing, scores, crossed = chunks
    written, memories, landing = _walk(chunks, v * share, inverted, carry, decay)
    before = memories[:-1].flatten(0, 1)
    dmemories = gradients_of_memories(dcarry, reading.faded, dy)
    dvalues = walk_back(dmemories, decay, asking.faded, inverted, torch.bmm(scores.mT, dy), landing)
    dafter = decay.land(dmemories[1:]).flatten(0, 1)
    dcarry = dmemories[0]
    decay.enter(dcarry, out=dcarry)

    dq, dasked, dk = torch.bmm(dy, before.mT), torch.bmm(dvalues, before.mT), torch.bmm(written, dafter.mT)
    dscores, dcrossed = torch.bmm(dy, written.mT).tril_(), torch.bmm(dvalues, written.mT).tril_(-1)
    dlog_decay = decay.backward(
        [(reading, dq), (asking, dasked)], [(writing, dk)],
        [[(scores, dscores)], [(crossed, dcrossed)]], memories, dmemories,
    )  # fmt: skip
    dasked = decay.as_read(dasked)
    dk = decay.as_written(dk).addcmul_(dasked, share, value=-1)
    dbeta = v.mul_(dvalues).sum(-1, keepdim=True)
    dbeta -= decay.as_read(writing.plain).mul_(dasked).sum(-1, keepdim=True)
    return dq, dk, dvalues, dbeta, dlog_decay, dcarry


_run = differentiable(
    "delta_rule_torch", SHAPES, *over_sequences(SHAPES, _allocate, _forward, _backward), num_outputs=2
)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, memory, *_ = _run(q, k, v, beta, log_decay, state, cu_seqlens, scale)
    return y, memory
