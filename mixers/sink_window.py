"""SinkWindow: softmax over the last tokens and the very first ones."""

from typing import NamedTuple

from torch import Tensor

from subquad.kernels._dispatch import BACKENDS

from ._cache import Cache
from ._window import FirstTokens, add_sums, window_sums
from .sliding_window import SlidingWindow


class SinkMemory(NamedTuple):
    """The first tokens, and the last ones."""

    first: FirstTokens
    near: Cache

    @property
    def tokens(self) -> tuple[Tensor, ...]:
        return (*self.first, *self.near.tokens)

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.near.nbytes

    def detach(self) -> "SinkMemory":
        return SinkMemory(*(part.detach() for part in self))

    def index_select(self, dim: int, rows: Tensor) -> "SinkMemory":
        return SinkMemory(*(part.index_select(dim, rows) for part in self))

    def emptied(self) -> "SinkMemory":
        return SinkMemory(*(part.emptied() for part in self))

    @classmethod
    def join(cls, memories: list["SinkMemory"]) -> "SinkMemory":
        """The rows of all these."""
        return cls(FirstTokens.join([m.first for m in memories]), Cache.join([m.near for m in memories]))


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
        before = FirstTokens.none(k, v, self.sinks) if memory is None else memory.first
        near = Cache.of(k, v) if memory is None else memory.near.append(k, v)
        first = before.after(k, v)
        sums = add_sums(window_sums(q, *near.tokens, self.window, near.starts), first.sums(q, self.window))
        return (sums[..., :-1] / sums[..., -1:]).to(v.dtype), SinkMemory(first, near.last(self.window - 1))
