"""generalized_delta_rule, one token at a time. Read this file to learn what the op means."""

import torch
from torch import Tensor

from .._packed import reference_over_sequences
from . import SHAPES


@reference_over_sequences(SHAPES)
def generalized_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, state: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    dtype, compute = q.dtype, torch.promote_types(q.dtype, torch.float32)
    rows, t, h, width = k.shape
    q, k, v, a, b, decay = q.to(compute) * scale, *(x.to(compute) for x in (k, v, a, b, log_decay.exp()))
    memory = v.new_zeros(rows, h, width, v.shape[-1]) if state is None else state.to(compute)
    ys = []
    for now in range(t):
        answer = torch.einsum("bhk,bhkv->bhv", a[:, now], memory)
        memory = decay[:, now, :, :, None] * memory
        memory = memory + b[:, now, :, :, None] * answer[:, :, None] + k[:, now, :, :, None] * v[:, now, :, None]
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, now], memory))
    return torch.stack(ys, dim=1).to(dtype), memory
