"""causal_attention as one masked matrix of scores. Read this file to learn what the op means."""

import torch
from torch import Tensor

from .._packed import reference_over_sequences
from . import SHAPES


@reference_over_sequences(SHAPES)
def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    starts: Tensor | None,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    compute = torch.promote_types(q.dtype, torch.float32)
    (b, t, h, _), (s, g) = q.shape, k.shape[1:3]
    k, v = (x.to(compute).repeat_interleave(h // g, dim=2) for x in (k, v))
    scores = scale * torch.einsum("bthk, bshk -> bhts", q.to(compute), k)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    visible = _visible(t, s, window, starts, q.device)
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(compute)[:, None, None].expand(b, h, t, 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., :s] * visible
    return torch.einsum("bhts, bshv -> bthv", weights, v).to(q.dtype)


def _visible(t: int, s: int, window: int | None, starts: Tensor | None, device: torch.device) -> Tensor:
    """Which keys each query sees: bool, broadcasts to (b, h, t, s)."""
    query, key = torch.arange(s - t, s, device=device)[:, None], torch.arange(s, device=device)
    visible = key <= query
    if window is not None:
        visible = visible & (key > query - window)
    if starts is not None:
        visible = visible & (key >= starts[:, None, None, None])
    return visible
