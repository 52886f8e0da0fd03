"""Softmax over the last and the first tokens, as sums and maxima that can be averaged with more."""

from typing import NamedTuple

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


class FirstTokens(NamedTuple):
    """The first tokens of each row, attention's sinks, and how many tokens it has seen."""

    k: Tensor  # (b, sinks, g, k), zero where there is no token yet
    v: Tensor
    seen: Tensor  # (b,)

    @classmethod
    def none(cls, k: Tensor, v: Tensor, sinks: int) -> "FirstTokens":
        """Before the first of the tokens k, v (b, t, g, k)."""
        empty = (x.new_zeros(x.shape[0], sinks, *x.shape[2:]) for x in (k, v))
        return cls(*empty, torch.zeros(len(k), dtype=torch.int64, device=k.device))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self)

    def detach(self) -> "FirstTokens":
        return FirstTokens(*(part.detach() for part in self))

    def index_select(self, dim: int, rows: Tensor) -> "FirstTokens":
        return FirstTokens(*(part.index_select(dim, rows) for part in self))

    def emptied(self) -> "FirstTokens":
        return FirstTokens(*(torch.zeros_like(part) for part in self))

    @classmethod
    def join(cls, parts: list["FirstTokens"]) -> "FirstTokens":
        """The rows of all these."""
        return cls(*(torch.cat(rows) for rows in zip(*parts, strict=True)))

    def after(self, k: Tensor, v: Tensor) -> "FirstTokens":
        """After these tokens too: they fill the places that are free."""
        slots, (b, t) = torch.arange(self.k.shape[1], device=k.device), k.shape[:2]
        new = slots - self.seen[:, None]  # (b, sinks): which new token belongs in the place
        place = torch.where((new >= 0) & (new < t), len(slots) + new, slots)[:, :, None, None]
        filled = (
            torch.cat([old, x], dim=1).gather(1, place.expand(b, -1, *x.shape[2:]))
            for old, x in ((self.k, k), (self.v, v))
        )
        return FirstTokens(*filled, self.seen + t)

    def sums(self, q: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """As `window_sums`, over those of these tokens that have left the window of the last t queries (b, t, h, k)."""
        t, groups = q.shape[1], q.shape[2] // self.k.shape[2]
        k, v = (x.repeat_interleave(groups, dim=2) for x in (self.k, self.v))
        query = (self.seen - t)[:, None] + torch.arange(t, device=q.device)  # (b, t)
        left = torch.arange(k.shape[1], device=q.device) <= query[..., None] - window
        scores = in_float32(torch.einsum("bthk, bshk -> bths", q, k)) * q.shape[-1] ** -0.5
        scores = scores.masked_fill(~left[:, :, None], torch.finfo(scores.dtype).min)
        peak = scores.amax(-1, keepdim=True)
        v = torch.cat([v, v.new_ones(*v.shape[:3], 1)], dim=-1)
        weights = (scores - peak).exp() * left[:, :, None]
        return torch.einsum("bths, bshv -> bthv", weights, v.to(scores.dtype)), peak


def add_sums(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """The sums over both sets of keys, less the maximum of both."""
    top = torch.maximum(one[1], other[1])
    return sum(sums * (peak - top).exp() for sums, peak in (one, other))
