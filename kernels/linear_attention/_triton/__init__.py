"""linear_attention on the GPU: programs walk along time, a chunk at a time, with the memory in registers.

Where heads and columns alone would leave multiprocessors idle, time is cut into segments: a first pass finds what each
adds to the memory, and then all are walked side by side.
"""

import torch
from torch import Tensor

from ..._autograd import differentiable
from ..._tiles import readable
from .. import SHAPES
from .backward import run_backward
from .forward import run_forward


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> list[Tensor]:  # fmt: skip
    """y, the memory after the last token, the sums of weights."""
    b, t, h, width = q.shape
    n = b if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return [
        q.new_empty(b, t, h, v.shape[-1]),
        q.new_empty(n, h, width, v.shape[-1] + normalize, dtype=torch.float32),
        q.new_empty((b, t, h) if normalize else 0, dtype=torch.float32),
    ]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> list[Tensor]:  # fmt: skip
    y, memory, den = _allocate(q, k, v, log_decay, state, cu_seqlens, scale, normalize)
    q, k, v, log_decay = map(readable, (q, k, v, log_decay))
    start = None if state is None else state.contiguous()
    run_forward(q, k, v, log_decay, start, cu_seqlens, y, memory, den, scale, normalize)
    return [y, memory, den]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> list[Tensor | None]:  # fmt: skip
    (dy, dmemory), (y, _, den) = grads, kept
    dy = torch.zeros_like(y) if dy is None else readable(dy)
    q, k, v, log_decay = map(readable, (q, k, v, log_decay))
    start, dmemory = (None if x is None else x.contiguous() for x in (state, dmemory))
    return run_backward(q, k, v, log_decay, start, cu_seqlens, y, den, dy, dmemory, scale, normalize)


_run = differentiable("linear_attention_triton", SHAPES, _allocate, _forward, _backward, num_outputs=2)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    scale: float, normalize: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, memory, *_ = _run(q, k, v, log_decay, state, cu_seqlens, scale, normalize)
    return y, memory
