"""delta_rule, one token at a time. Read this file to learn what the op means."""

import torch
from torch import Tensor

from .._packed import reference_over_sequences
from . import SHAPES


@reference_over_sequences(SHAPES)
def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    dtype, compute = q.dtype, torch.promote_types(q.dtype, torch.float32)
    b, t, h, width = k.shape
    q, k, v, beta = q.to(compute) * scale, k.to(compute), v.to(compute), beta.to(compute)
    memory = v.new_zeros(b, h, width, v.shape[-1]) if state is None else state.to(compute)
    decay = None
    if log_decay is not None:
        decay = log_decay.to(compute).exp().reshape(b, t, h, -1, 1)  # (b, t, h, 1 or k, 1)
    ys = []
    for now in range(t):
        kept = memory if decay is None else decay[:, now] * memory
        error = v[:, now] - torch.einsum("bhk,bhkv->bhv", k[:, now], kept)
        correction = beta[:, now, :, None] * error  # (b, h, v)
        memory = kept + k[:, now, :, :, None] * correction[:, :, None]
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, now], memory))
    return torch.stack(ys, dim=1).to(dtype), memory
