"""Softmax over a window whose sums and maximum are wanted, to be averaged with more than the window."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._decay import in_float32


def window_sums(q: Tensor, k: Tensor, v: Tensor, window: int, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """sum_j exp(s_ij - max_j s_ij) [v_j, 1] over the last `window` keys of each query, in blocks of queries.

    Args:
        q: (b, t, h, k) queries, the last t of the s keys.
        k, v: (b, s, g, k) and (b, s, g, v), of which at most `window` are before the first query.
        window: number of keys that a query sees.
        starts: (b,) the first real key of each row; all are if None.

    Returns:
        (b, t, h, v + 1) in float32 or wider, 0 for a query that sees no key; and the maximum (b, t, h, 1).
    """
    (b, t, h, d), (s, g) = q.shape, k.shape[1:3]
    block = min(window, t)
    num_blocks, left = -(-t // block), window - (s - t)
    right = num_blocks * block - t
    v = torch.cat([v, v.new_ones(b, s, g, 1)], dim=-1)
    # Block n of queries sees a stretch of window + block keys, of which query i sees those at i + 1 to i + window.
    k, v = (F.pad(x, (0, 0, 0, 0, left, right)).unfold(1, window + block, block) for x in (k, v))  # (b, n, g, k, j)
    q = F.pad(q, (0, 0, 0, 0, 0, right)).view(b, num_blocks, block, g, h // g, d)
    scores = in_float32(torch.einsum("bnigrd, bngdj -> bngrij", q, k)) * d**-0.5
    query, key = torch.arange(block, device=q.device)[:, None], torch.arange(window + block, device=q.device)
    place = torch.arange(num_blocks, device=q.device)[:, None] * block + key - left  # (n, j)
    real = place >= (torch.zeros(1, 1, 1, device=q.device) if starts is None else starts[:, None, None])  # (b, n, j)
    visible = ((key > query) & (key <= query + window)) & real[:, :, None]  # (b, n, i, j)
    visible = visible[:, :, None, None]
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    peak = scores.amax(-1, keepdim=True)  # (b, n, g, r, i, 1)
    weights = (scores - peak).exp() * visible
    sums = torch.einsum("bngrij, bngvj -> bnigrv", weights, v.to(weights.dtype))
    peak = peak.permute(0, 1, 4, 2, 3, 5)
    return tuple(x.flatten(1, 2)[:, :t].flatten(2, 3) for x in (sums, peak))
