"""generalized_delta_rule on the GPU, in the terms of `_torch.py`: F = U (A~ S + L V) in each chunk, written under b.

U, L and the weights of q are made for all chunks side by side. Then programs walk along time with the memory in
registers: forward for y; for the gradients forward again, leaving F and the memory before each chunk, and backward,
leaving dv and the gradients of A~ S + L V and of the memory after each chunk. The other gradients are made of these for
all chunks side by side. Nothing is kept between the passes.
"""

import torch
from torch import Tensor

from ..._autograd import differentiable
from ..._tiles import readable
from .. import SHAPES
from .backward import run_backward
from .pairs import run_pairs
from .walk import run_walk


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> list[Tensor]:  # fmt: skip
    num_rows, t, h, width = q.shape
    n = num_rows if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return [q.new_empty(num_rows, t, h, v.shape[-1]), q.new_empty(n, h, width, v.shape[-1], dtype=torch.float32)]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> list[Tensor]:  # fmt: skip
    y, memory = _allocate(q, k, v, a, b, log_decay, state, cu_seqlens, scale)
    q, k, v, a, b, log_decay = map(readable, (q, k, v, a, b, log_decay))
    start = None if state is None else state.contiguous()
    pairs = run_pairs(q, k, v, a, b, log_decay, cu_seqlens, scale) if q.shape[1] > 1 else None
    run_walk(k, v, a, b, log_decay, pairs, start, cu_seqlens, scale, q=q, y=y, end=memory)
    return [y, memory]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> list[Tensor | None]:  # fmt: skip
    dy, dmemory = grads
    dy = torch.zeros_like(kept[0]) if dy is None else readable(dy)
    q, k, v, a, b, log_decay = map(readable, (q, k, v, a, b, log_decay))
    start, dmemory = (None if x is None else x.contiguous() for x in (state, dmemory))
    return run_backward(q, k, v, a, b, log_decay, start, cu_seqlens, dy, dmemory, scale)


_run = differentiable("generalized_delta_rule_triton", SHAPES, _allocate, _forward, _backward, num_outputs=2)


def generalized_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None,
    cu_seqlens: Tensor | None, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, memory = _run(q, k, v, a, b, log_decay, state, cu_seqlens, scale)
    return y, memory
