"""linear_attention in PyTorch: chunks of tokens as matrix products, the memory carried from chunk to chunk.

Blocks of heads, sequences and time are small enough for a core's cache. The backward pass keeps the memory at the
start of every segment of time and forms everything else again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._autograd import differentiable
from .._blocks import blocks, new_outputs, segments
from .._decays import Decay, gradients_of_memories, load_decays, pass_on
from .._packed import over_sequences
from . import EPS, SHAPES


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> list[Tensor]:  # fmt: skip
    """y, the memory after the last token, the memory before each segment but the first, sums of weights."""
    y, memory, carries = new_outputs(q, v, cu_seqlens, columns=normalize)
    return [y, memory, carries, memory.new_empty(q.shape[:3] if normalize else 0)]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float, normalize: bool
) -> list[Tensor]:
    if q.shape[1] == 1:
        return _step(q, k, v, log_decay, state, scale, normalize)
    outputs = _allocate(q, k, v, log_decay, state, None, scale, normalize)
    y, memory, carries, den = outputs
    b, t, h, width = q.shape
    memory.zero_() if state is None else memory.copy_(state)
    for block in blocks(b, t, h, width, v.shape[-1]):
        carry = memory[block].flatten(0, 1)  # (g, k, m)
        places = segments(block, t, memory.dtype)
        for place, decay in zip(places, load_decays(log_decay, places), strict=True):
            if place.index:
                carries[place.index - 1][block] = carry.view_as(memory[block])
            queries, keys = place.load(q, decay.reader), place.load(k, decay.writer)
            values = place.load(v, column=1.0 if normalize else None)
            result, carry = _read_and_write(queries, keys, values, carry, decay)
            if normalize:
                weights = result[..., -1:] * scale + EPS
                place.store(den[..., None], weights)
                result = result[..., :-1] / weights
            place.store(y, result, scale)
        memory[block] = carry.view_as(memory[block])
    return outputs


def _read_and_write(q: Tensor, k: Tensor, v: Tensor, carry: Tensor, decay: Decay) -> tuple[Tensor, Tensor]:
    """One block: what its queries (N, c, k) read of keys and values (N, c, m), and the memory after it."""
    reading, writing = decay.reading(q), decay.writing(k)
    memory = _memories(carry, writing.faded, v, decay)
    y = torch.bmm(reading.faded, memory[:-1].flatten(0, 1)).baddbmm_(decay.weights(reading, writing), v)
    return y, memory[-1]


def _memories(carry: Tensor, writing: Tensor, v: Tensor, decay: Decay) -> Tensor:
    """(n + 1, g, k, m): the memory as each chunk reads it, and after the last."""
    n = len(v) // len(carry)
    memory = carry.new_empty(n + 1, *carry.shape)
    decay.enter(carry, out=memory[0])
    torch.bmm(writing.mT, v, out=memory[1:].flatten(0, 1))
    decay.land(memory[1:])
    _add_in_turn(memory.unbind(), decay.totals(n))
    return memory


def _add_in_turn(memories: Sequence[Tensor], totals: Sequence[Tensor | None]) -> None:
    """Add to each memory what is left of the one before it in this order."""
    for before, after, total in zip(memories, memories[1:], totals, strict=False):
        pass_on(before, after, total)


def _step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float, normalize: bool
) -> list[Tensor]:
    """One token: the equation itself."""
    compute = torch.promote_types(q.dtype, torch.float32)
    b, _, h, width = q.shape
    query = q.to(compute).reshape(b * h, 1, width)
    key = k.to(compute).reshape(b * h, width, 1)
    value = v.to(compute).reshape(b * h, 1, -1)
    if normalize:
        value = torch.cat([value, value.new_ones(b * h, 1, 1)], dim=-1)
    if state is None:
        memory = key * value
    else:
        before = state.to(compute).reshape(b * h, width, -1)
        if log_decay is not None:
            before = before * log_decay.to(compute).exp().reshape(b * h, -1, 1)
        memory = torch.addcmul(before, key, value)
    y = torch.bmm(query, memory).mul_(scale).view(b, 1, h, -1)
    memory = memory.view(b, h, width, -1)
    den = y[..., -1] + EPS if normalize else y.new_empty(0)
    y = y[..., :-1] / den[..., None] if normalize else y
    return [y.to(q.dtype), memory, y.new_empty(0, *memory.shape), den]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float, normalize: bool,
) -> list[Tensor | None]:  # fmt: skip
    y, memory, carries, den = kept
    dy = torch.zeros_like(y) if grads[0] is None else grads[0]
    dstate = torch.zeros_like(memory) if grads[1] is None else grads[1].clone()
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    dlog_decay = None if log_decay is None else torch.empty_like(log_decay, dtype=memory.dtype)
    b, t, h, width = q.shape
    for block in blocks(b, t, h, width, v.shape[-1]):
        dcarry = dstate[block].flatten(0, 1)
        places = segments(block, t, memory.dtype)[::-1]
        for place, decay in zip(places, load_decays(log_decay, places), strict=True):
            carry = carries[place.index - 1] if place.index else state
            carry = torch.zeros_like(dcarry) if carry is None else carry[block].flatten(0, 1).to(memory.dtype)
            queries, keys = place.load(q, decay.reader), place.load(k, decay.writer)
            values = place.load(v, column=1.0 if normalize else None)
            dresult = place.load(dy, scale, column=0.0 if normalize else None)
            if normalize:
                _through_division(dresult, place.load(y), place.load(den[..., None]))
            dqueries, dkeys, dvalues, dgates, dcarry = _read_and_write_backward(
                queries, keys, values, dresult, carry, dcarry, decay
            )
            place.store(dq, dqueries, decay.reader)
            place.store(dk, dkeys, decay.writer)
            place.store(dv, dvalues[..., : v.shape[-1]])
            if dlog_decay is not None:
                place.store(dlog_decay if dlog_decay.ndim == 4 else dlog_decay[..., None], dgates)
        dstate[block] = dcarry.view_as(dstate[block])
    return [dq, dk, dv, dlog_decay, None if state is None else dstate]


def _through_division(dresult: Tensor, y: Tensor, weights: Tensor) -> None:
    """y = num / den: turn dy, in all columns but the last, into the gradients of num and, in the last, of den.

    What num and den have in common as a factor, the scale, is in dy.
    """
    dresult[..., -1] = -(dresult[..., :-1] * y).sum(-1)
    dresult.div_(weights).masked_fill_(weights == 0, 0)  # padding reads nothing


def _read_and_write_backward(
    q: Tensor, k: Tensor, v: Tensor, dy: Tensor, carry: Tensor, dcarry: Tensor, decay: Decay
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of one block: of q, k, v as they were loaded and log_decay, (N, c, width), and of the memory before."""
    reading, writing = decay.reading(q), decay.writing(k)
    memories = _memories(carry, writing.faded, v, decay)
    dmemories = gradients_of_memories(dcarry, reading.faded, dy)
    _add_in_turn(dmemories.unbind()[::-1], decay.totals(len(memories) - 1)[::-1])
    before, dafter = memories[:-1].flatten(0, 1), decay.land(dmemories[1:]).flatten(0, 1)
    weights, dweights = decay.weights(reading, writing), torch.bmm(dy, v.mT).tril_()
    dv = torch.bmm(writing.faded, dafter).baddbmm_(weights.mT, dy)
    dq, dk = torch.bmm(dy, before.mT), torch.bmm(v, dafter.mT)
    dcarry = dmemories[0]
    decay.enter(dcarry, out=dcarry)
    dlog_decay = decay.backward([(reading, dq)], [(writing, dk)], [[(weights, dweights)]], memories, dmemories)
    return dq, dk, dv, dlog_decay, dcarry


_run = differentiable(
    "linear_attention_torch", SHAPES, *over_sequences(SHAPES, _allocate, _forward, _backward), num_outputs=2
)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, memory, *_ = _run(q, k, v, log_decay, state, cu_seqlens, scale, normalize)
    return y, memory
