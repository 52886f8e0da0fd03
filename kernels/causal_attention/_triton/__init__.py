"""causal_attention on the GPU: scores and weights never leave the chip, neither forward nor backward."""

import torch
from torch import Tensor

from ..._autograd import differentiable
from .. import SHAPES
from ._tiles import bounds_of, scores_of, with_unit_stride
from .backward import run_backward
from .decode import is_decoding, run_decode
from .forward import run_forward


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None, cu_seqlens: Tensor | None,
    window: int | None, scale: float, softcap: float | None,
) -> list[Tensor]:  # fmt: skip
    b, t, h, _ = q.shape
    return [q.new_empty(b, t, h, v.shape[3]), q.new_empty(b, h, t, dtype=torch.float32)]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None, cu_seqlens: Tensor | None,
    window: int | None, scale: float, softcap: float | None,
) -> list[Tensor]:  # fmt: skip
    y, lse = _allocate(q, k, v, sinks, starts, cu_seqlens, window, scale, softcap)
    window = _narrow(window, k.shape[1])
    q, k, v = (with_unit_stride(x) for x in (q, k, v))
    first, _ = bounds_of(starts, cu_seqlens, q.shape[1], k.shape[1])
    run = run_decode if is_decoding(q.shape[1], k.shape[1], q.shape[2] // k.shape[2]) else run_forward
    run(q, k, v, sinks, first, y, lse, window, scores_of(scale, softcap))
    return [y, lse]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None, cu_seqlens: Tensor | None,
    window: int | None, scale: float, softcap: float | None,
) -> list[Tensor | None]:  # fmt: skip
    (dy,), (y, lse) = grads, kept
    window = _narrow(window, k.shape[1])
    q, k, v, dy = (with_unit_stride(x) for x in (q, k, v, dy))
    bounds = bounds_of(starts, cu_seqlens, q.shape[1], k.shape[1])
    return [*run_backward(q, k, v, sinks, bounds, y, lse, dy, window, scale, scores_of(scale, softcap)), None]


def _narrow(window: int | None, s: int) -> int | None:
    """A window that hides nothing is none."""
    return None if window is None or window >= s else window


_attention = differentiable("causal_attention_triton", SHAPES, _allocate, _forward, _backward, num_outputs=1)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None, cu_seqlens: Tensor | None,
    window: int | None, scale: float, softcap: float | None,
) -> Tensor:  # fmt: skip
    return _attention(q, k, v, sinks, starts, cu_seqlens, window, scale, softcap)[0]
