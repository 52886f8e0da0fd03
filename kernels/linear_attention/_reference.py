"""linear_attention, one token at a time. Read this file to learn what the op means."""

import torch
from torch import Tensor

from .._packed import reference_over_sequences
from . import EPS, SHAPES


@reference_over_sequences(SHAPES)
def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    dtype, compute = q.dtype, torch.promote_types(q.dtype, torch.float32)
    b, t, h, width = k.shape
    q, k, v = q.to(compute) * scale, k.to(compute), v.to(compute)
    if normalize:
        v = torch.cat([v, v.new_ones(b, t, h, 1)], dim=-1)
    memory = v.new_zeros(b, h, width, v.shape[-1]) if state is None else state.to(compute)
    decay = None
    if log_decay is not None:
        decay = log_decay.to(compute).exp().reshape(b, t, h, -1, 1)  # (b, t, h, 1 or k, 1)
    ys = []
    for now in range(t):
        kept = memory if decay is None else decay[:, now] * memory
        memory = kept + k[:, now, :, :, None] * v[:, now, :, None, :]  # (b, h, k, m)
        y = torch.einsum("bhk,bhkm->bhm", q[:, now], memory)
        ys.append(y[..., :-1] / (y[..., -1:] + EPS) if normalize else y)
    return torch.stack(ys, dim=1).to(dtype), memory
