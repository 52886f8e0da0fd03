"""Tokens that were seen, in buffers that grow by doubling: the state of mixers that read the past again."""

import torch
import torch.nn.functional as F
from torch import Tensor


class _Buffer:
    """Storage that several caches may share: tensors (b, g, capacity, k) whose first `used` slots are written."""

    __slots__ = ("tensors", "used")

    def __init__(self, tensors: tuple[Tensor, ...], used: int):
        self.tensors = tensors
        self.used = used

    @property
    def capacity(self) -> int:
        return self.tensors[0].shape[2]


class Cache:
    """A stretch of tokens held in one or more tensors (b, s, g, k) that grow together, such as keys and values.

    A Cache is a value, though appending costs no copy of the past: the new tokens are written behind the old ones, in
    slots that no older cache looks at. Only the newest cache on a buffer may do so. Appending to an older one, or to
    a full one, moves its tokens to a buffer of twice their number; so two continuations never disturb each other, and
    a token is copied a bounded number of times on average. Where gradients are recorded, appending concatenates:
    decode under torch.no_grad() or inference_mode().

    Stored as (b, g, capacity, k), so that the tokens of one head lie side by side when a step reads them.
    """

    __slots__ = ("_buffer", "_first", "_start", "_stop")

    def __init__(self, buffer: _Buffer, start: int, stop: int, first: Tensor | None = None):
        self._buffer = buffer
        self._start = start
        self._stop = stop
        self._first = first  # (b,) slot of each row's first token, where rows do not begin together

    @classmethod
    def of(cls, *tokens: Tensor, starts: Tensor | None = None) -> "Cache":
        """The first tokens, (b, s, g, k) each, held as they are: nothing is copied until more are appended.

        Before `starts` (b,) a row holds no token, but fills the place of one.
        """
        s = tokens[0].shape[1]
        return cls(_Buffer(tuple(x.transpose(1, 2) for x in tokens), s), 0, s, starts)

    @classmethod
    def join(cls, caches: list["Cache"]) -> "Cache":
        """The rows of all these, shorter ones behind zeros that are no tokens."""
        s = max(map(len, caches))
        tokens, starts = [], []
        for cache in caches:
            missing = s - len(cache)
            tokens.append([F.pad(x, (0, 0, 0, 0, missing, 0)) for x in cache.tokens])
            rows = tokens[-1][0]
            own = rows.new_zeros(len(rows), dtype=torch.int64) if cache.starts is None else cache.starts
            starts.append(own + missing)
        return cls.of(*(torch.cat(rows) for rows in zip(*tokens, strict=True)), starts=torch.cat(starts))

    def __len__(self) -> int:
        return self._stop - self._start

    @property
    def tokens(self) -> tuple[Tensor, ...]:
        """Views (b, s, g, k) of everything held, oldest first."""
        return tuple(x[:, :, self._start : self._stop].transpose(1, 2) for x in self._buffer.tensors)

    @property
    def starts(self) -> Tensor | None:
        """(b,) index of each row's first token among `tokens`; None if all rows begin at the first."""
        return None if self._first is None else (self._first - self._start).clamp_min(0)

    @property
    def capacity(self) -> int:
        """Tokens that the buffer has room for, those held included."""
        return self._buffer.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens held; the room kept for more is not counted."""
        return sum(x.nbytes for x in self.tokens)

    def append(self, *tokens: Tensor) -> "Cache":
        """The tokens held and then these, (b, t, g, k) each."""
        self._check(tokens)
        if torch.is_grad_enabled():
            # A backward pass may still need what is held, also where it needs no gradient itself.
            both = (torch.cat(pair, dim=1) for pair in zip(self.tokens, tokens, strict=True))
            return Cache.of(*both, starts=self.starts)
        t = tokens[0].shape[1]
        cache = self if self._may_write(t) else self._moved(2 * (len(self) + t))
        stop = cache._stop + t
        for stored, new in zip(cache._buffer.tensors, tokens, strict=True):
            stored[:, :, cache._stop : stop] = new.transpose(1, 2)
        cache._buffer.used = stop
        return Cache(cache._buffer, cache._start, stop, cache._first)

    def last(self, n: int) -> "Cache":
        """The newest n tokens. They leave a buffer that is mostly older tokens, so that it can be freed."""
        kept = Cache(self._buffer, max(self._start, self._stop - n), self._stop, self._first)
        if self.capacity <= 2 * (n + 1):
            return kept
        copies = (x.clone(memory_format=torch.contiguous_format) for x in kept.tokens)
        return Cache.of(*copies, starts=kept.starts)

    def emptied(self) -> "Cache":
        """As many places, but no token in them."""
        s = len(self)
        tokens = [torch.zeros_like(x) for x in self.tokens]
        return Cache.of(*tokens, starts=torch.full((len(tokens[0]),), s, device=tokens[0].device))

    def detach(self) -> "Cache":
        if not any(x.requires_grad for x in self._buffer.tensors):
            return self
        return Cache.of(*(x.detach() for x in self.tokens), starts=self.starts)

    def index_select(self, dim: int, rows: Tensor) -> "Cache":
        """The rows of the batch (dim 0) with these indices, in a buffer of their own."""
        assert dim == 0, "a cache is only ever reordered by batch"
        starts = None if self.starts is None else self.starts.index_select(0, rows)
        return Cache.of(*(x.index_select(0, rows) for x in self.tokens), starts=starts)

    def _check(self, tokens: tuple[Tensor, ...]) -> None:
        for held, new in zip(self.tokens, tokens, strict=True):
            (b, _, *heads), (rows, _, *new_heads) = held.shape, new.shape
            if (b, heads, held.dtype) != (rows, new_heads, new.dtype):
                raise ValueError(
                    f"state: it holds b={b} rows of {held.dtype}, heads (g, k) = {tuple(heads)}, but the new tokens "
                    f"are b={rows} of {new.dtype}, (g, k) = {tuple(new_heads)}; continue a state with the batch, the "
                    "mixer and the autocast setting that made it"
                )

    def _may_write(self, t: int) -> bool:
        is_newest = self._buffer.used == self._stop
        return is_newest and self._stop + t <= self.capacity and _is_writable(self._buffer.tensors[0])

    def _moved(self, capacity: int) -> "Cache":
        moved = []
        for x in self.tokens:
            b, s, g, k = x.shape
            stored = x.new_empty(b, g, capacity, k)
            stored[:, :, :s] = x.transpose(1, 2)
            moved.append(stored)
        return Cache(_Buffer(tuple(moved), len(self)), 0, len(self), self.starts)


def _is_writable(stored: Tensor) -> bool:
    """PyTorch refuses to write outside of inference mode to what was made inside. While tracing it cannot be asked."""
    return torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not stored.is_inference()
