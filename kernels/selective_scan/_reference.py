"""selective_scan, one token at a time. Read this file to learn what the op means."""

import torch
from torch import Tensor

from .._packed import reference_over_sequences
from . import SHAPES


@reference_over_sequences(SHAPES)
def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype, compute = x.dtype, torch.promote_types(x.dtype, torch.float32)
    x, dt, A, B, C = (z.to(compute) for z in (x, dt, A, B, C))
    h = x.new_zeros(x.shape[0], *A.shape) if state is None else state.to(compute)
    ys = []
    for now in range(x.shape[1]):
        decay = (dt[:, now, :, None] * A).exp()  # (b, d, m)
        h = decay * h + (dt[:, now] * x[:, now])[:, :, None] * B[:, now, None, :]
        ys.append((h * C[:, now, None, :]).sum(-1))
    y = torch.stack(ys, dim=1)
    return (y if D is None else y + D.to(compute) * x).to(dtype), h
