"""SinkWindow: softmax over the last tokens and the very first ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from subquad.kernels._dispatch import BACKENDS

from ._cache import Cache
from ._decay import in_float32
from ._window import window_sums
from .sliding_window import SlidingWindow


class SinkMemory(NamedTuple):
    """The first tokens of each row, how many it has seen, and the last tokens."""

    k: Tensor  # (b, sinks, g, k), zero where there is no token yet
    v: Tensor
    seen: Tensor  # (b,)
    near: Cache

    @property
    def tokens(self) -> tuple[Tensor, ...]:
        return (self.k, self.v, self.seen, *self.near.tokens)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes + self.seen.nbytes + self.near.nbytes

    def detach(self) -> "SinkMemory":
        return SinkMemory(self.k.detach(), self.v.detach(), self.seen, self.near.detach())

    def index_select(self, dim: int, rows: Tensor) -> "SinkMemory":
        return SinkMemory(*(part.index_select(dim, rows) for part in self))

    def emptied(self) -> "SinkMemory":
        return SinkMemory(*(torch.zeros_like(part) for part in self[:3]), self.near.emptied())

    @classmethod
    def join(cls, memories: list["SinkMemory"]) -> "SinkMemory":
        """The rows of all these."""
        first = (torch.cat(parts) for parts in zip(*(memory[:3] for memory in memories), strict=True))
        return cls(*first, Cache.join([memory.near for memory in memories]))


class SinkWindow(SlidingWindow):
    """Softmax attention to the last `window` tokens and to the first `sinks` (Xiao et al. 2023, arXiv 2309.17453).

    A model that was trained on all tokens puts much weight on its first ones, whatever they say; a window that lost
    them would spread it over the others. Positions are those of the text; the paper counts them within the cache.

    x -> q, k, v -> rotary -> softmax over both -> out.

    Args:
        d_model: width of the input and of the output.
        sinks: number of first tokens that stay.
        window: number of last tokens that a token reads, its own included.
        num_heads, num_kv_heads, head_dim, rotary_base: as in Attention.
        backend: a name of the ops' backends; the softmax over both is PyTorch's under each.
    """

    def __init__(
        self,
        d_model: int,
        *,
        sinks: int = 4,
        window: int = 64,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_base: float | None = 10_000.0,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(
            d_model, window=window, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
            rotary_base=rotary_base, backend=backend, device=device, dtype=dtype,
        )  # fmt: skip
        if sinks < 1:
            raise ValueError(f"{self.name}: sinks must be at least 1, got {sinks}; use SlidingWindow for none")
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"{self.name}: unknown backend {backend!r}; expected one of auto, {', '.join(BACKENDS)}")
        self.sinks = sinks

    def mix(self, inputs: dict[str, Tensor], memory: SinkMemory | None) -> tuple[Tensor, SinkMemory]:
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        if memory is None:
            nothing = (x.new_zeros(x.shape[0], self.sinks, *x.shape[2:]) for x in (k, v))
            memory = SinkMemory(*nothing, k.new_zeros(len(k), dtype=torch.int64), Cache.of(k[:, :0], v[:, :0]))
        near = memory.near.append(k, v) if len(memory.near) else Cache.of(k, v)
        sums, peak = window_sums(q, *near.tokens, self.window, near.starts)
        first = [self._first(old, new, memory.seen) for old, new in ((memory.k, k), (memory.v, v))]
        scores = self._sink_scores(q, first[0], memory.seen)  # (b, t, h, sinks)
        top = torch.maximum(peak, scores.amax(-1, keepdim=True))
        ones = first[1].new_ones(*first[1].shape[:3], 1)
        values = torch.cat([first[1], ones], dim=-1).repeat_interleave(q.shape[2] // v.shape[2], dim=2)
        of_sinks = torch.einsum("bths, bshv -> bthv", (scores - top).exp(), values.to(scores.dtype))
        total = sums * (peak - top).exp() + of_sinks
        after = SinkMemory(*first, memory.seen + q.shape[1], near.last(self.window - 1))
        return (total[..., :-1] / total[..., -1:]).to(v.dtype), after

    def _first(self, old: Tensor, new: Tensor, seen: Tensor) -> Tensor:
        """The first tokens (b, sinks, g, k) of rows that had seen `seen` tokens before these."""
        slots = torch.arange(self.sinks, device=new.device)
        of_new = slots - seen[:, None]  # (b, sinks): which new token belongs in the slot
        both = torch.cat([old, new], dim=1)
        place = torch.where((of_new >= 0) & (of_new < new.shape[1]), self.sinks + of_new, slots)
        return both.gather(1, place[:, :, None, None].expand(-1, -1, *new.shape[2:]))

    def _sink_scores(self, q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
        """Scores of the sinks that have left the window, the others at the least there is."""
        scores = torch.einsum("bthk, bshk -> bths", q, k.repeat_interleave(q.shape[2] // k.shape[2], dim=2))
        query = seen[:, None] + torch.arange(q.shape[1], device=q.device)  # (b, t)
        left = torch.arange(self.sinks, device=q.device) <= query[..., None] - self.window
        scores = in_float32(scores) * q.shape[-1] ** -0.5
        return scores.masked_fill(~left[:, :, None], torch.finfo(scores.dtype).min)
