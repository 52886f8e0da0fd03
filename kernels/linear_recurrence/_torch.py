"""linear_recurrence in PyTorch: a segment of time is cut into chunks that walk side by side, all from zero.

Then the carries are walked from chunk to chunk, and what is left of them is added to every token. So c chunks of c
tokens take 2 c steps on wide tensors, not c^2 on narrow ones. A segment is small enough for a core's cache.
"""

import math

import torch
from torch import Tensor

from .._autograd import differentiable
from .._packed import over_sequences
from . import SHAPES

SEGMENT_ELEMENTS = 1 << 18  # of a segment of all sequences and channels: 1 MB in float32


def _allocate(x: Tensor, log_decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> list[Tensor]:
    n = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    compute = torch.promote_types(x.dtype, torch.float32)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [y, x.new_empty(n, x.shape[2], dtype=compute)]


def _forward(x: Tensor, log_decay: Tensor, state: Tensor | None) -> list[Tensor]:
    y, h = _allocate(x, log_decay, state, None)
    h.zero_() if state is None else h.copy_(state)
    for span in _segments(x):
        part, h = _walk(x[:, span].to(h.dtype), log_decay[:, span].to(h.dtype).exp(), h)
        y[:, span] = part
    return [y, h]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor], x: Tensor, log_decay: Tensor, state: Tensor | None
) -> list[Tensor | None]:
    """dh_t = dy_t + exp(log_decay_{t+1}) dh_{t+1} ,  dx_t = dh_t ,  dlog_decay_t = dh_t exp(log_decay_t) h_{t-1}."""
    (dy, dlast), (y, last) = grads, kept
    compute = last.dtype
    dh = torch.zeros_like(last) if dlast is None else dlast  # what flows into h of the last token of a segment
    dx = torch.empty_like(y)
    dlog_decay = torch.empty_like(log_decay, dtype=compute, memory_format=torch.contiguous_format)
    for span in reversed(_segments(x)):
        decay = log_decay[:, span].to(compute).exp()
        outer = torch.zeros_like(decay) if dy is None else dy[:, span].to(compute)
        crossed = torch.cat([torch.ones_like(decay[:, :1]), decay[:, 1:].flip(1)], dim=1)
        part = _walk(outer.flip(1), crossed, dh)[0].flip(1)
        dx[:, span] = part
        part *= decay
        dh = part[:, 0].clone()
        before = y[:, span.start - 1 : span.start] if span.start else _first(state, last)
        part[:, 1:] *= y[:, span.start : span.stop - 1]
        part[:, :1] *= before
        dlog_decay[:, span] = part
    return [dx, dlog_decay, None if state is None else dh]


def _first(state: Tensor | None, like: Tensor) -> Tensor:
    """h before the first token, (b, 1, d)."""
    return (torch.zeros_like(like) if state is None else state.to(like.dtype))[:, None]


def _segments(x: Tensor) -> list[slice]:
    b, t, d = x.shape
    size = max(1, SEGMENT_ELEMENTS // (b * d))
    return [slice(start, min(t, start + size)) for start in range(0, t, size)]


def _walk(x: Tensor, decay: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """All h of a segment (b, t, d), and the last one."""
    b, t, d = x.shape
    if t == 1:
        h = torch.addcmul(x[:, 0], decay[:, 0], h)
        return h[:, None], h.clone()
    chunk = math.isqrt(t - 1) + 1
    n = -(-t // chunk)
    padding = n * chunk - t  # nothing comes in, nothing fades
    part = torch.cat([x, x.new_zeros(b, padding, d)], dim=1).view(b, n, chunk, d)
    left = torch.cat([decay, decay.new_ones(b, padding, d)], dim=1).view(b, n, chunk, d)
    steps, factors = part.unbind(2), left.unbind(2)
    for now in range(1, chunk):
        steps[now].addcmul_(factors[now], steps[now - 1])
        factors[now].mul_(factors[now - 1])  # what is left of the carry, where the decay of this token alone was
    carries = x.new_empty(b, n + 1, d)
    carries[:, 0] = h
    for index in range(n):
        torch.addcmul(steps[-1][:, index], factors[-1][:, index], carries[:, index], out=carries[:, index + 1])
    part.addcmul_(left, carries[:, :-1, None])
    return part.view(b, n * chunk, d)[:, :t], carries[:, -1].clone()


run = differentiable(
    "linear_recurrence_torch", SHAPES, *over_sequences(SHAPES, _allocate, _forward, _backward), num_outputs=2
)


def linear_recurrence(
    x: Tensor, log_decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, h = run(x, log_decay, state, cu_seqlens)
    return y, h
