"""causal_attention in PyTorch: tiles of a few heads and query rows against just the keys they see.

A tile's scores fit a core's cache, so the softmax between the two matrix products does not wait for memory. Nothing
larger than a tile is kept: the backward pass computes the weights again. What PyTorch's own fused kernel for the CPU
knows goes to that kernel.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .._autograd import differentiable
from .._packed import over_sequences
from ..levers import matmul_lever
from . import SHAPES

MIN_ROWS, MAX_ROWS = 16, 64  # query rows of a tile: fewer make thin products, more compute too much that is masked
FEW_ROWS = 16  # query rows of a key head up to which keys and values are read where they lie, without a copy
ALIGNMENT = 16  # the keys of a windowed tile begin at a multiple of this: a vector register of floats
SHORT = 256  # keys up to which the fused kernel with a mask is faster than tiles that skip what is masked
LONG = 1024  # keys from which oneDNN's products pay inside the fused kernel

fused_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
softmax_backward = torch.ops.aten._softmax_backward_data.out


@dataclass(frozen=True)
class _Tile:
    """Slices of the key heads of all sequences, of the queries, and of the keys that these see."""

    heads: slice
    rows: slice
    keys: slice

    @property
    def num_rows(self) -> int:
        return self.rows.stop - self.rows.start

    @property
    def num_keys(self) -> int:
        return self.keys.stop - self.keys.start


@dataclass(frozen=True)
class _Tiled:
    """The arguments with heads first: n = b * g key heads, each read by r = h / g query heads."""

    q: Tensor  # (n, r, t, k), scaled
    k: Tensor  # (n, s, k)
    v: Tensor  # (n, s, v)
    sinks: Tensor | None  # (n, r)
    starts: Tensor | None  # (n)
    window: int | None
    softcap: float | None

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None,
        window: int | None, scale: float, softcap: float | None,
    ) -> "_Tiled":  # fmt: skip
        (b, t, h, k_dim), g = q.shape, k.shape[2]
        q, k, v = (_heads_first(x) for x in (q, k, v))
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        return cls(
            q=torch.mul(q, scale, out=q.new_empty(b, h, t, k_dim)).view(b * g, h // g, t, k_dim),
            k=k if _is_few(t, h // g) else k.contiguous(),
            v=v if _is_few(t, h // g) else v.contiguous(),
            sinks=None if sinks is None else sinks.to(q.dtype).view(g, -1).repeat(b, 1),
            starts=None if starts is None else starts.repeat_interleave(g),
            window=window,
            softcap=softcap,
        )

    @cached_property
    def ahead(self) -> Tensor:
        """-inf right of the diagonal, to be added to a tile's scores with its own keys."""
        rows = min(self.q.shape[2], MAX_ROWS)
        return self.q.new_full((rows, rows), float("-inf")).triu(1)

    @cached_property
    def behind(self) -> Tensor:
        """-inf up to ALIGNMENT - 1 right of the diagonal, to be added where the windows of a tile begin."""
        rows = min(self.q.shape[2], MAX_ROWS)
        return self.q.new_full((rows, rows + ALIGNMENT), float("-inf")).tril(ALIGNMENT - 1)

    @property
    def before(self) -> int:
        """Number of keys before the first query's own."""
        return self.k.shape[1] - self.q.shape[2]

    def tiles(self) -> Iterator[_Tile]:
        n, group, t, _ = self.q.shape
        elements = _tile_elements(self.q.device)
        start = 0
        while start < t:
            own = self.before + start
            first = 0 if self.window is None else max(0, own - self.window + 1) // ALIGNMENT * ALIGNMENT
            rows = elements // (group * (own + 1 - first))
            rows = min(max(rows, MIN_ROWS), MAX_ROWS, t - start)
            keys = slice(first, own + rows)
            num_heads = max(1, elements // (group * rows * (keys.stop - first)))
            for head in range(0, n, num_heads):
                yield _Tile(slice(head, min(head + num_heads, n)), slice(start, start + rows), keys)
            start += rows

    def scores(self, tile: _Tile) -> Tensor:
        """(heads, rows, keys), capped, not masked; with sinks one column more, still empty."""
        q = _rows_of(self.q, tile)
        scores = q.new_empty(*q.shape[:2], tile.num_keys + (self.sinks is not None))
        seen = scores[..., : tile.num_keys]
        torch.bmm(q, self.k[tile.heads, tile.keys].mT, out=seen)
        if self.softcap is not None:
            seen.div_(self.softcap).tanh_().mul_(self.softcap)
        return scores

    def weights(self, tile: _Tile, scores: Tensor) -> Tensor:
        """Softmax of `scores`, which are overwritten, over what is visible."""
        scores = scores.view(tile.heads.stop - tile.heads.start, -1, tile.num_rows, scores.shape[-1])
        self._hide_invisible(tile, scores[..., : tile.num_keys])
        if self.sinks is not None:
            scores[..., -1] = self.sinks[tile.heads, :, None]
        weights = torch.softmax(scores, dim=-1, out=scores)
        if self.starts is not None:
            row = torch.arange(tile.rows.start, tile.rows.stop, device=scores.device) + self.before
            sees_nothing = row < self.starts[tile.heads, None]
            weights.masked_fill_(sees_nothing[:, None, :, None], 0.0)
        return weights.flatten(1, 2)

    def _hide_invisible(self, tile: _Tile, scores: Tensor) -> None:
        rows = tile.num_rows
        if rows > 1:
            scores[..., -rows:] += self.ahead[:rows, :rows]
        if self.window is not None:
            hidden = self.before + tile.rows.start - self.window + 1 - tile.keys.start  # from the tile's first row
            width = min(rows + hidden - 1, tile.num_keys)
            if width > 0:
                scores[..., :width] += self.behind[:rows, ALIGNMENT - hidden :][:, :width]
        if self.starts is not None:
            key = torch.arange(tile.keys.start, tile.keys.stop, device=scores.device)
            padding = key < self.starts[tile.heads, None]
            scores.masked_fill_(padding[:, None, None, :], float("-inf"))


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None, cu_seqlens: Tensor | None,
    window: int | None, scale: float, softcap: float | None,
) -> list[Tensor]:  # fmt: skip
    b, t, h, _ = q.shape
    y = q.new_empty(b, t, h, v.shape[3])
    if _is_fused(q, k, v, sinks, starts, window, softcap):
        return [y, q.new_empty(b, t, h, dtype=_compute_dtype(q)).transpose(1, 2)]
    return [y]


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None,
    window: int | None, scale: float, softcap: float | None,
) -> list[Tensor]:  # fmt: skip
    if _is_fused(q, k, v, sinks, starts, window, softcap):
        mask = _window_mask(q, window)
        with _product_route(q, small=q.shape[1] < LONG):
            y, lse = fused_forward(*(_for_fused(x) for x in (q, k, v)), 0.0, mask is None, attn_mask=mask, scale=scale)
        return [y.transpose(1, 2).to(q.dtype), lse]
    tiled = _Tiled.of(q, k, v, sinks, starts, window, scale, softcap)
    with _product_route(q, small=_is_few(q.shape[1], q.shape[2] // k.shape[2])):
        return [_time_first(_tiled_forward(tiled), q).to(q.dtype).contiguous()]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None,
    window: int | None, scale: float, softcap: float | None,
) -> list[Tensor | None]:  # fmt: skip
    (dy,) = grads
    if _is_fused(q, k, v, sinks, starts, window, softcap):
        y, lse = kept
        mask = _window_mask(q, window)
        with _product_route(q, small=q.shape[1] < LONG):
            gradients = fused_backward(
                *(_for_fused(x) for x in (dy, q, k, v, y)), lse, 0.0, mask is None, attn_mask=mask, scale=scale
            )
        return [*(dx.transpose(1, 2) for dx in gradients), None, None]
    tiled = _Tiled.of(q, k, v, sinks, starts, window, scale, softcap)
    with _product_route(q, small=_is_few(q.shape[1], q.shape[2] // k.shape[2])):
        dq, dk, dv, dsinks = _tiled_backward(tiled, _heads_first(dy).reshape(*tiled.q.shape[:3], -1))
    if dsinks is not None:
        dsinks = dsinks.view(q.shape[0], -1).sum(0)
    return [_time_first(dq.mul_(scale), q), _time_first(dk, q), _time_first(dv, q), dsinks, None]


def _tiled_forward(tiled: _Tiled) -> Tensor:
    """y (n, r, t, v)."""
    y = tiled.q.new_empty(*tiled.q.shape[:3], tiled.v.shape[2])
    for tile in tiled.tiles():
        weights = tiled.weights(tile, tiled.scores(tile))
        _write_rows(y, tile, torch.bmm(weights[..., : tile.num_keys], tiled.v[tile.heads, tile.keys]))
    return y


def _tiled_backward(tiled: _Tiled, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dq (n, r, t, k) of the scaled queries, dk (n, s, k), dv (n, s, v), dsinks (n, r)."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (tiled.q, tiled.k, tiled.v))
    dsinks = None if tiled.sinks is None else torch.zeros_like(tiled.sinks)
    for tile in tiled.tiles():
        dy_tile = _rows_of(dy, tile)
        scores = tiled.scores(tile)
        slope = None if tiled.softcap is None else 1 - (scores[..., : tile.num_keys] / tiled.softcap).square()
        weights = tiled.weights(tile, scores)
        dv[tile.heads, tile.keys] += torch.bmm(weights[..., : tile.num_keys].mT, dy_tile)
        dweights = torch.empty_like(weights)
        dweights[..., tile.num_keys :] = 0.0  # a sink gives no value
        torch.bmm(dy_tile, tiled.v[tile.heads, tile.keys].mT, out=dweights[..., : tile.num_keys])
        dscores = softmax_backward(dweights, weights, -1, weights.dtype, grad_input=dweights)
        if dsinks is not None:
            dsinks[tile.heads] += dscores[..., -1].unflatten(1, (-1, tile.num_rows)).sum(2)
        dscores = dscores[..., : tile.num_keys]
        if slope is not None:
            dscores = dscores * slope
        _write_rows(dq, tile, torch.bmm(dscores, tiled.k[tile.heads, tile.keys]))
        dk[tile.heads, tile.keys] += torch.bmm(dscores.mT, _rows_of(tiled.q, tile))
    return dq, dk, dv, dsinks


def _is_fused(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None,
    window: int | None, softcap: float | None,
) -> bool:  # fmt: skip
    """Whether PyTorch's fused kernel for the CPU knows the case, and a window is not better served by tiles."""
    plain = sinks is None and starts is None and softcap is None
    square = q.shape[1] == k.shape[1] and k.shape[3] == v.shape[3]
    narrow = window is not None and k.shape[1] > max(SHORT, window)
    return plain and square and not narrow and q.device.type == "cpu"


def _window_mask(q: Tensor, window: int | None) -> Tensor | None:
    """(t, t) to be added to the scores, or None where causality is all there is to hide."""
    t = q.shape[1]
    if window is None or window >= t:
        return None
    hidden = torch.full((t, t), float("-inf"), dtype=_compute_dtype(q))
    return hidden.triu(1) + hidden.tril(-window)


def _product_route(q: Tensor, small: bool) -> AbstractContextManager:
    """Small products are slower by oneDNN: they take PyTorch's default route whatever the process has chosen."""
    return matmul_lever(False) if small and q.device.type == "cpu" else nullcontext()


def _is_few(t: int, group: int) -> bool:
    """Whether too few queries read each key to pay for a copy of it."""
    return group * t <= FEW_ROWS


def _tile_elements(device: torch.device) -> int:
    """Scores of a tile: as many as the L2 caches of all cores hold, on a GPU enough to keep it busy."""
    return torch.get_num_threads() << 18 if device.type == "cpu" else 1 << 24


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _heads_first(x: Tensor) -> Tensor:
    """(b, t, h, d) -> (b, h, t, d) in the dtype of computation."""
    return x.to(_compute_dtype(x)).transpose(1, 2)


def _for_fused(x: Tensor) -> Tensor:
    """Like `_heads_first`; the fused kernel takes any strides but that of the last axis, which it does not look at."""
    return _heads_first(x if x.stride(3) == 1 else x.contiguous())


def _time_first(x: Tensor, q: Tensor) -> Tensor:
    """(b * g, r, t, d) -> (b, t, h, d), or (b * g, s, d) -> (b, s, g, d); a view."""
    if x.ndim == 4:
        x = x.flatten(0, 1)
    return x.view(q.shape[0], -1, *x.shape[1:]).transpose(1, 2)


def _rows_of(x: Tensor, tile: _Tile) -> Tensor:
    """The tile's part of (n, r, t, d): (heads, rows, d), where the query heads of a key head give further rows."""
    return x[tile.heads, :, tile.rows].flatten(1, 2)


def _write_rows(x: Tensor, tile: _Tile, rows: Tensor) -> None:
    """Put what `_rows_of` gives back into its place."""
    x[tile.heads, :, tile.rows] = rows.unflatten(1, (-1, tile.num_rows))


_attention = differentiable(
    "causal_attention_torch", SHAPES, *over_sequences(SHAPES, _allocate, _forward, _backward), num_outputs=1
)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, starts: Tensor | None, cu_seqlens: Tensor | None,
    window: int | None, scale: float, softcap: float | None,
) -> Tensor:  # fmt: skip
    return _attention(q, k, v, sinks, starts, cu_seqlens, window, scale, softcap)[0]
