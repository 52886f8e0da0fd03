"""polynomial_attention, with every weight formed. Read this file to learn what the op means."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._packed import reference_over_sequences
from . import EPSILON, SHAPES


@reference_over_sequences(SHAPES)
def polynomial_attention(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, coefficients: list[float], scale: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    compute, dtype = torch.promote_types(q.dtype, torch.float32), q.dtype
    q, k, v = (x.to(compute).transpose(1, 2) for x in (q, k, v))  # each (b, h, t, k or v)
    if normalize:
        v = F.pad(v, (0, 1), value=1.0)
    c0, c1, c2 = coefficients
    s = scale * (q @ k.mT)  # (b, h, t, t)
    y = (c0 + c1 * s + c2 * s**2).tril() @ v
    after = symmetric_features(k, coefficients).mT @ v  # (b, h, r, v)
    if state is not None:
        state = state.to(compute)
        y = y + (symmetric_features(q, coefficients) * read_weights(q, coefficients, scale)) @ state
        after = after + state
    if normalize:
        y = y[..., :-1] / (y[..., -1:] + EPSILON)
    return y.transpose(1, 2).to(dtype), after


def symmetric_features(x: Tensor, coefficients: list[float]) -> Tensor:
    """(..., k) -> (..., r): 1, x_i and x_i x_j for i <= j, row by row; each if its coefficient is not 0."""
    c0, c1, c2 = coefficients
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    groups = [(c0, torch.ones_like(x[..., :1])), (c1, x), (c2, x[..., i] * x[..., j])]
    return torch.cat([group for c, group in groups if c != 0], dim=-1)


def read_weights(x: Tensor, coefficients: list[float], scale: float) -> Tensor:
    """(r,) so that sum_r weight_r phi_r(q) phi_r(k) is the polynomial: a product x_i x_j, i < j, stands for two."""
    c0, c1, c2 = coefficients
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    square = torch.where(i == j, 1.0, 2.0).to(x.dtype)
    groups = [(c0, x.new_ones(1)), (c1 * scale, x.new_ones(x.shape[-1])), (c2 * scale**2, square)]
    return torch.cat([c * group for (c, group), present in zip(groups, coefficients, strict=True) if present != 0])
