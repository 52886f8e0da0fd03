"""generalized_delta_rule in PyTorch: chunks of tokens as matrix products, the memory carried from chunk to chunk.

In a chunk that begins with the memory S, the answer to token i is

    F_i = a_i fade_{i-1} S + sum_{j < i} (a_i fade_{i-1,j} b_j) F_j + sum_{j < i} (a_i fade_{i-1,j} k_j) v_j

So F = U (L V + A S), where U inverts a unit lower triangular matrix, and the rest is linear attention that writes v
under k and F under b. What is asked by token i fades as what is read by token i - 1: so asks are moved up by a token,
their weights are formed as a query's, and moved down again.

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
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> list[Tensor]:  # fmt: skip
    """y, the memory after the last token, the memory before each segment but the first, U."""
    return [*new_outputs(q, v, cu_seqlens), new_weights(q)]


class _Chunks(NamedTuple):
    """What is known of the N chunks of c tokens of a block without their memories.

    v (N, c, v); reading: q (N, c, k), which reads S; asks: a, moved up by a token, which reads it too, and asking,
    where it belongs; writing, adding: k and b, which write into the next S. The scale is in none of them: y is
    multiplied by it when it is stored, dy when it is loaded. scores, echoes: weights of q on the k and b until it;
    heard, crossed: of asks, likewise.
    """

    v: Tensor
    reading: Faded
    asks: Faded
    asking: Tensor
    writing: Faded
    adding: Faded
    scores: Tensor
    echoes: Tensor
    heard: Tensor
    crossed: Tensor


def _up(x: Tensor) -> Tensor:
    """Each row (axis 1) in the place of the one before it; the last row is zero."""
    moved = torch.zeros_like(x)
    moved[:, :-1] = x[:, 1:]
    return moved


def _down(x: Tensor) -> Tensor:
    """Each row in the place of the one after it; the first row is zero."""
    moved = torch.zeros_like(x)
    moved[:, 1:] = x[:, :-1]
    return moved


def _prepare(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, decay: Decay, place: Place) -> _Chunks:
    factors = ((q, decay.reader), (k, decay.writer), (v, 1.0), (a, 1.0), (b, decay.writer))
    q, k, v, a, b = (place.load(x, factor) for x, factor in factors)
    reading, asks = decay.reading(q), decay.reading(decay.as_read(_up(a)))
    writing, adding = decay.writing(k), decay.writing(b)
    scores, echoes = decay.weights(reading, writing), decay.weights(reading, adding)
    heard, crossed = decay.weights(asks, writing), decay.weights(asks, adding)
    asking = _down(asks.faded)
    asking[:, 0] = decay.at_entry(a[:, 0])  # the first token asks before anything has faded
    return _Chunks(v, reading, asks, asking, writing, adding, scores, echoes, heard, crossed)


def _walk(chunks: _Chunks, inverted: Tensor, carry: Tensor, decay: Decay) -> tuple[Tensor, Tensor, Tensor]:
    """F; memories (n + 1, g, k, v); b as the next chunk reads what it adds."""
    memories = carry.new_empty(len(chunks.v) // len(carry) + 1, *carry.shape)
    decay.enter(carry, out=memories[0])
    torch.bmm(chunks.writing.faded.mT, chunks.v, out=memories[1:].flatten(0, 1))
    decay.land(memories[1:])
    told, landing = torch.bmm(_down(chunks.heard), chunks.v), decay.landing(chunks.adding.faded)
    return walk(memories, decay, chunks.asking, inverted, told, landing), memories, landing


def _forward(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None, scale: float
) -> list[Tensor]:
    if q.shape[1] == 1:
        return _step(q, k, v, a, b, log_decay, state, scale)
    outputs = _allocate(q, k, v, a, b, log_decay, state, None, scale)
    y, memory, carries, solved = outputs
    rows, t, h, width = q.shape
    memory.zero_() if state is None else memory.copy_(state)
    for block in blocks(rows, t, h, width, v.shape[-1]):
        carry = memory[block].flatten(0, 1)  # (g, k, v)
        places = segments(block, t, memory.dtype)
        for place, decay in zip(places, load_decays(log_decay, places), strict=True):
            if place.index:
                carries[place.index - 1][block] = carry.view_as(memory[block])
            chunks = _prepare(q, k, v, a, b, decay, place)
            inverted = inverse(_down(chunks.crossed))
            place.keep(solved, inverted)
            answers, memories, _ = _walk(chunks, inverted, carry, decay)
            before, carry = memories[:-1].flatten(0, 1), memories[-1]
            result = torch.bmm(chunks.reading.faded, before).baddbmm_(chunks.scores, chunks.v)
            result.baddbmm_(chunks.echoes, answers)
            place.store(y, result, scale)
        memory[block] = carry.view_as(memory[block])
    return outputs


def _step(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None, scale: float
) -> list[Tensor]:
    """One token: the equation itself."""
    compute = torch.promote_types(q.dtype, torch.float32)
    rows, _, h, width = q.shape
    query, key, value, ask, answer_key = (x.to(compute).reshape(rows * h, 1, -1) for x in (q, k, v, a, b))
    written = torch.bmm(key.mT, value)
    if state is None:
        memory = written
    else:
        before = state.to(compute).reshape(rows * h, width, -1)
        memory = before * log_decay.to(compute).exp().reshape(rows * h, width, 1)
        memory.baddbmm_(answer_key.mT, torch.bmm(ask, before)).add_(written)
    y = torch.bmm(query, memory).mul_(scale).view(rows, 1, h, -1)
    memory = memory.view(rows, h, width, -1)
    return [y.to(q.dtype), memory, y.new_empty(0, *memory.shape), memory.new_ones(1, rows, h, 1, 1)]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None, scale: float,
) -> list[Tensor | None]:  # fmt: skip
    y, memory, carries, solved = kept
    dy = torch.zeros_like(y) if grads[0] is None else grads[0]
    dstate = torch.zeros_like(memory) if grads[1] is None else grads[1].clone()
    gradients = [x.new_empty(x.shape) for x in (q, k, v, a, b)]
    gradients.append(torch.empty_like(log_decay, dtype=memory.dtype))
    rows, t, h, width = q.shape
    for block in blocks(rows, t, h, width, v.shape[-1]):
        dcarry = dstate[block].flatten(0, 1)
        places = segments(block, t, memory.dtype)[::-1]
        for place, decay in zip(places, load_decays(log_decay, places), strict=True):
            carry = carries[place.index - 1] if place.index else state
            carry = torch.zeros_like(dcarry) if carry is None else carry[block].flatten(0, 1).to(memory.dtype)
            chunks = _prepare(q, k, v, a, b, decay, place)
            *found, dcarry = _chunks_backward(chunks, place.kept(solved), place.load(dy, scale), carry, dcarry, decay)
            factors = (decay.reader, decay.writer, 1.0, 1.0, decay.writer, 1.0)
            for x, dx, factor in zip(gradients, found, factors, strict=True):
                place.store(x, dx, factor)
        dstate[block] = dcarry.view_as(dstate[block])
    return [*gradients, None if state is None else dstate]


def _outer(dy: Tensor, written: Tensor) -> Tensor:
    """Gradient of weights with which `written` was read."""
    return torch.bmm(dy, written.mT).tril_()


def _chunks_backward(
    chunks: _Chunks, inverted: Tensor, dy: Tensor, carry: Tensor, dcarry: Tensor, decay: Decay
) -> tuple[Tensor, ...]:
    """Gradients of one block: of q and k as they were loaded, of v and a, of b as it was loaded, of log_decay; and of
    the memory before it.

    The memory has two readers, q with the gradient dy and a with that of what U is applied to, and two writers, k with
    v and b with F.
    """
    answers, memories, landing = _walk(chunks, inverted, carry, decay)
    before = memories[:-1].flatten(0, 1)
    dmemories = gradients_of_memories(dcarry, chunks.reading.faded, dy)
    dtold = walk_back(dmemories, decay, chunks.asking, inverted, torch.bmm(chunks.echoes.mT, dy), landing)
    dafter = decay.land(dmemories[1:]).flatten(0, 1)
    dcarry = dmemories[0]
    decay.enter(dcarry, out=dcarry)

    later = _up(dtold)  # where the weights of asks are
    dv = torch.bmm(chunks.scores.mT, dy).baddbmm_(chunks.writing.faded, dafter).baddbmm_(chunks.heard.mT, later)
    dq, dasking = torch.bmm(dy, before.mT), torch.bmm(dtold, before.mT)
    dasks = _up(dasking)
    dk, db = torch.bmm(chunks.v, dafter.mT), torch.bmm(answers, dafter.mT)
    pairs = [
        [(chunks.scores, _outer(dy, chunks.v)), (chunks.echoes, _outer(dy, answers))],
        [(chunks.heard, _outer(later, chunks.v)), (chunks.crossed, _outer(later, answers))],
    ]
    dlog_decay = decay.backward(
        [(chunks.reading, dq), (chunks.asks, dasks)],
        [(chunks.writing, dk), (chunks.adding, db)],
        pairs, memories, dmemories,
    )  # fmt: skip
    da = _down(decay.as_read(dasks))
    da[:, 0] = decay.at_entry(dasking[:, 0])
    return dq, dk, dv, da, db, dlog_decay, dcarry


_run = differentiable(
    "generalized_delta_rule_torch", SHAPES, *over_sequences(SHAPES, _allocate, _forward, _backward), num_outputs=2
)


def generalized_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, memory, *_ = _run(q, k, v, a, b, log_decay, state, cu_seqlens, scale)
    return y, memory
