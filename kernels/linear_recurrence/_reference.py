"""linear_recurrence, one token at a time. Read this file to learn what the op means."""

import torch
from torch import Tensor

from .._packed import reference_over_sequences
from . import SHAPES


@reference_over_sequences(SHAPES)
def linear_recurrence(x: Tensor, log_decay: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    compute = torch.promote_types(x.dtype, torch.float32)
    h = x.new_zeros(x.shape[0], x.shape[2], dtype=compute) if state is None else state.to(compute)
    ys = []
    for now in range(x.shape[1]):
        h = log_decay[:, now].to(compute).exp() * h + x[:, now].to(compute)  # (b, d)
        ys.append(h)
    return torch.stack(ys, dim=1).to(x.dtype), h
