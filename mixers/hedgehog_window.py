"""HedgehogWindow: softmax over the last tokens and learned linear attention over all before them, in one average."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.linear_attention import linear_attention

from ._cache import Cache
from ._feature_maps import HedgehogMap
from ._window import FirstTokens, add_sums, window_sums
from .sliding_window import SlidingWindow

WINDOW_LOGIT = -2.197  # at the start: the window's weights count sigmoid(-2.197) = 0.1 each


class WindowedMemory(NamedTuple):
    """The first tokens, the last ones, and the sums over all between them."""

    first: FirstTokens
    near: Cache
    far: Tensor  # (b, h, 2 k, v + 1)

    @property
    def tokens(self) -> tuple[Tensor, ...]:
        return (*self.first, *self.near.tokens, self.far)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self)

    def detach(self) -> "WindowedMemory":
        return WindowedMemory(*(part.detach() for part in self))

    def index_select(self, dim: int, rows: Tensor) -> "WindowedMemory":
        return WindowedMemory(*(part.index_select(dim, rows) for part in self))

    def emptied(self) -> "WindowedMemory":
        return WindowedMemory(self.first.emptied(), self.near.emptied(), torch.zeros_like(self.far))

    @classmethod
    def join(cls, memories: list["WindowedMemory"]) -> "WindowedMemory":
        """The rows of all these."""
        first, near, far = zip(*memories, strict=True)
        return cls(FirstTokens.join(first), Cache.join(near), torch.cat(far))


class HedgehogWindow(SlidingWindow):
    """LoLCATs' hybrid attention (Zhang et al. 2024, arXiv 2410.10254, eq. 6), with Hedgehog's features (2402.04347).

    y_i = (sum_near g exp(s_ij - c_i) v_j + sum_far phi(q_i) . phi'(k_j) v_j) / (the same sums without v) ,
    s_ij = q_i . k_j / sqrt(k) ,    c_i = max_near s_ij ,    phi(x) = [softmax(W x), softmax(-W x)]

    over near keys, i - window < j <= i, and far ones, j <= i - window, with a learned g = sigmoid(window_logit) a head.
    The first `sinks` keys are always near: softmax leans on them whatever they say, which features of q and k do not
    learn well (ours; none as published). x -> q, k, v -> rotary -> the average -> out. It is what a model's own
    attention is turned into with few new parameters (`subquad.linearize`).

    Args:
        d_model: width of the input and of the output.
        window: number of near tokens, the token itself included.
        sinks: number of first tokens that are near too.
        num_heads: query heads.
        num_kv_heads: heads of keys and values, each shared by a group of query heads; num_heads if None.
        head_dim: channels of a head; d_model / num_heads if None.
        rotary_base: longest wavelength of the rotary positions, over 2 pi; no positions if None.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        window: int = 64,
        sinks: int = 0,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_base: float | None = 10_000.0,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        factory = dict(device=device, dtype=dtype)
        super().__init__(
            d_model, window=window, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
            rotary_base=rotary_base, backend=backend, **factory,
        )  # fmt: skip
        if sinks < 0:
            raise ValueError(f"{self.name}: sinks must not be negative, got {sinks}")
        self.sinks = sinks
        self.q_map = HedgehogMap(num_heads, self.head_dim, **factory)
        self.k_map = HedgehogMap(self.heads[1], self.head_dim, **factory)
        self.window_logit = nn.Parameter(torch.full((num_heads, 1), WINDOW_LOGIT, **factory))

    def mix(self, inputs: dict[str, Tensor], memory: WindowedMemory | None) -> tuple[Tensor, WindowedMemory]:
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        before = FirstTokens.none(k, v, self.sinks) if memory is None else memory.first
        held = Cache.of(k, v) if memory is None else memory.near.append(k, v)
        first = before.after(k, v)
        near, peak = window_sums(q, *held.tokens, self.window, held.starts)
        if self.sinks:
            near = add_sums((near, peak), first.sums(q, self.window))
        far, sums = self._far_sums(q, held, first.seen, None if memory is None else memory.far)
        total = self.window_logit.sigmoid().to(near.dtype) * near + far.to(near.dtype)  # (b, t, h, v + 1)
        y = (total[..., :-1] / total[..., -1:]).to(v.dtype)
        return y, WindowedMemory(first, held.last(self.window), sums)

    def _far_sums(self, q: Tensor, held: Cache, seen: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sums over the far keys (b, t, h, v + 1), the last of weights alone: a key becomes far `window` tokens on."""
        (b, t), (h, g, _) = q.shape[:2], self.heads
        k, v = (F.pad(x, (0, 0, 0, 0, self.window - (len(held) - t), 0))[:, :t] for x in held.tokens)
        place = (seen - t - self.window)[:, None] + torch.arange(t, device=q.device)  # (b, t), in their row
        far = (place >= self.sinks)[:, :, None, None]
        k, ones = self.k_map(k) * far.to(k.dtype), v.new_ones(b, t, g, 1)
        k, v = (x.repeat_interleave(h // g, dim=2) for x in (k, torch.cat([v, ones], dim=-1)))
        return linear_attention(self.q_map(q), k, v, scale=1.0, state=before, backend=self.backend)
