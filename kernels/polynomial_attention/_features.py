"""The features of polynomial_attention on a CPU: formed from tokens that are contiguous in time, one tile at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BAND = 4  # rows i of the products x_i x_j that share one multiplication; inside a band each pair is formed twice
TILE = 256  # features of a tile: with 1k tokens they stay in a core's cache. One band may be larger.


@dataclass(frozen=True)
class Tile:
    """Some of the features: perhaps 1, perhaps x, and the products x_i x_j of a few bands of i, j from the band on."""

    has_one: bool
    has_linear: bool
    bands: tuple[tuple[int, int], ...]  # first and last + 1 of the rows i
    rows: Tensor  # (f,) where each feature stands in the state
    kept: Tensor  # the features that make the state, in its order: of a pair formed twice only i <= j
    is_kept: Tensor  # (f, 1) 1 for these, 0 for the others
    span: slice  # the rows of the state that they make
    weights: Tensor  # (f, 1) of each feature when a query reads the state

    @property
    def num_features(self) -> int:
        return len(self.rows)

    def expand(self, x: Tensor) -> Tensor:
        """(n, k, c) -> (n, f, c)."""
        n, k, c = x.shape
        features = x.new_empty(n, self.num_features, c)
        if self.has_one:
            features[:, 0] = 1.0
        if self.has_linear:
            features[:, self.has_one : self.has_one + k] = x
        for (start, end), products in self._products(features, k):
            torch.mul(x[:, start:end, None], x[:, None, start:], out=products)
        return features

    def pull_back(self, dfeatures: Tensor, x: Tensor, dx: Tensor) -> None:
        """Add to dx (n, k, c) what flows back through `expand` from dfeatures (n, f, c)."""
        k = x.shape[1]
        if self.has_linear:
            dx += dfeatures[:, self.has_one : self.has_one + k]
        for (start, end), dproducts in self._products(dfeatures, k):
            dx[:, start:end] += (dproducts * x[:, None, start:]).sum(2)
            dx[:, start:] += (dproducts * x[:, start:end, None]).sum(1)

    def load(self, state: Tensor | None) -> Tensor | None:
        """(n, r, w) of the op -> (n, f, w) of the tile. None stands for zero, here and below."""
        return None if state is None else state.index_select(1, self.rows)

    def store(self, tile_state: Tensor, state: Tensor) -> None:
        """The inverse of `load`: the features that are kept stand in the order of the state."""
        state[:, self.span] = tile_state.index_select(1, self.kept)

    def load_gradient(self, dstate: Tensor | None) -> Tensor | None:
        """What flows back through `store`."""
        return None if dstate is None else dstate.index_select(1, self.rows) * self.is_kept

    def store_gradient(self, dtile: Tensor | None, dstate: Tensor) -> None:
        """Add to dstate what flows back through `load`."""
        if dtile is not None:
            dstate.index_add_(1, self.rows, dtile)

    def _products(self, features: Tensor, k: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Each band with its part of the features, (n, rows i, columns j, c)."""
        offset = self.has_one + self.has_linear * k
        for start, end in self.bands:
            size = (end - start) * (k - start)
            yield (start, end), features[:, offset : offset + size].unflatten(1, (end - start, k - start))
            offset += size


@lru_cache(maxsize=64)
def tiles_of(
    k: int,
    coefficients: tuple[float, float, float],
    polynomial: tuple[float, float, float],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tile, ...]:
    """All features of k dims that the state holds with these coefficients; weights as of `polynomial` in q.k."""
    c0, c1, c2 = coefficients
    bands = [(start, min(start + BAND, k)) for start in range(0, k, BAND)] if c2 else []
    tiles, members, size = [], [], (c0 != 0) + (c1 != 0) * k
    for start, end in bands:
        added = (end - start) * (k - start)
        if size and size + added > TILE:
            tiles.append(members)
            members, size = [], 0
        members.append((start, end))
        size += added
    tiles.append(members)
    return tuple(
        _tile(k, (c0 != 0, c1 != 0), index == 0, tuple(members), polynomial, dtype, device)
        for index, members in enumerate(tiles)
    )


def _tile(
    k: int,
    state_has: tuple[bool, bool],
    is_first: bool,
    bands: tuple[tuple[int, int], ...],
    polynomial: tuple[float, float, float],
    dtype: torch.dtype,
    device: torch.device,
) -> Tile:
    first_linear, first_product = int(state_has[0]), state_has[0] + state_has[1] * k
    entries = []  # (row of the state, kept, weight) of each feature
    if is_first and state_has[0]:
        entries.append((0, True, polynomial[0]))
    if is_first and state_has[1]:
        entries += [(first_linear + i, True, polynomial[1]) for i in range(k)]
    for start, end in bands:
        for i in range(start, end):
            for j in range(start, k):
                low, high = min(i, j), max(i, j)
                row = first_product + low * k - low * (low - 1) // 2 + high - low
                count = 1 if j < end else 2  # beyond the band the pair (j, i) is not formed: (i, j) counts for both
                entries.append((row, i <= j, count * polynomial[2]))
    rows, kept, weights = _columns(entries, device)
    has_one, has_linear = (is_first and present for present in state_has)
    span = slice(rows.min().item(), rows.max().item() + 1)
    is_kept, weights = kept.to(dtype)[:, None], weights.to(dtype)[:, None]
    return Tile(has_one, has_linear, bands, rows, kept.nonzero().flatten(), is_kept, span, weights)


def features_of_a_token(x: Tensor, coefficients: list[float], scale: float) -> tuple[Tensor, Tensor]:
    """(..., k) -> features (..., r) in the order of the state, and the weight (r,) of each on reading."""
    left, right, weights = _factors(x.shape[-1], tuple(coefficients), scale, x.dtype, x.device)
    x = F.pad(x, (1, 0), value=1.0)
    return x.index_select(-1, left) * x.index_select(-1, right), weights


@lru_cache(maxsize=64)
def _factors(
    k: int, coefficients: tuple[float, float, float], scale: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Each feature as the product of two elements of (1, x), and its weight."""
    c0, c1, c2 = coefficients
    entries = [(0, 0, c0)] if c0 else []
    entries += [(0, i, c1 * scale) for i in range(1, k + 1)] if c1 else []
    if c2:
        for i in range(1, k + 1):
            entries += [(i, j, (1 if i == j else 2) * c2 * scale**2) for j in range(i, k + 1)]
    left, right, weights = _columns(entries, device)
    return left, right, weights.to(dtype)


def _columns(entries: list[tuple[int, int, float]], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    first, second, weights = zip(*entries, strict=True)
    return (
        torch.tensor(first, device=device),
        torch.tensor(second, device=device),
        torch.tensor(weights, dtype=torch.float64, device=device),
    )
