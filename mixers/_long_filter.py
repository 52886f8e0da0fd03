"""Filters as long as the sequence, explicit or drawn by a small network, and how they meet a history of tokens."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.long_conv import long_conv

from ._cache import Cache

SLOWEST, FASTEST = 1.5, 0.3  # parts of max_length in which the slowest and the fastest channel decay to TARGET
TARGET = 1e-2


class ExplicitFilter(nn.Module):
    """A learned tap for each channel and distance: (d, max_length)."""

    def __init__(self, channels: int, max_length: int, *, device=None, dtype=None):
        super().__init__()
        self.max_length = max_length
        self.weight = nn.Parameter(torch.empty(channels, max_length, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As a depthwise nn.Conv1d of this length: with the published N(0, 1) outputs grow as sqrt(t)."""
        bound = self.max_length**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, t: int) -> Tensor:
        """The first t taps, (d, t)."""
        return self.weight[:, :t]


class ImplicitFilter(nn.Module):
    """Hyena's filter: a network of sines over features of the position, under an exponential decay window.

    h_i = MLP(z_i) * exp(-a * i / (max_length - 1)),   z_i = [i / (max_length - 1), cos(f w_i), -sin(f w_i)],
    w_i = 2 pi i / max_length, f evenly spaced over the bands, a evenly spaced over the channels.

    Computed in float32 or wider: in half precision neighbouring positions of a long sequence are the same number.

    Args:
        channels: number of filters.
        max_length: number of positions that the features tell apart.
        num_bands: frequencies of the features; there are 1 + 2 * num_bands features.
        hidden_dim: width of the two hidden layers and of the first.
        frequency: initial factor inside the sines, learned for each hidden channel and shared by the layers.

    Source: Poli et al. 2023 (arXiv 2302.10866), sec. 3.3 and the defaults of its published code.
    """

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        num_bands: int = 1,
        hidden_dim: int = 64,
        frequency: float = 1.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if num_bands < 1 or hidden_dim < 1:
            raise ValueError(
                f"ImplicitFilter: num_bands and hidden_dim must be at least 1, got {num_bands} and {hidden_dim}"
            )
        factory = dict(device=device, dtype=dtype)
        self.channels, self.max_length, self.num_bands = channels, max_length, num_bands
        self.hidden = nn.ModuleList(
            nn.Linear(width, hidden_dim, **factory) for width in (1 + 2 * num_bands, hidden_dim, hidden_dim)
        )
        self.frequency = nn.Parameter(torch.full((hidden_dim,), float(frequency), **factory))
        self.out_proj = nn.Linear(hidden_dim, channels, bias=False, **factory)

    def forward(self, t: int) -> Tensor:
        """The first t taps, (d, t), in float32 or wider."""
        weight = self.out_proj.weight
        compute = torch.promote_types(weight.dtype, torch.float32)
        index = torch.arange(t, device=weight.device, dtype=compute)[:, None]  # (t, 1)
        with torch.autocast(weight.device.type, enabled=False):
            y = self._features(index)
            for layer in self.hidden:
                y = F.linear(y, layer.weight.to(compute), layer.bias.to(compute))
                y = torch.sin(self.frequency.to(compute) * y)
            return (F.linear(y, weight.to(compute)) * self._decay(index)).T

    def _features(self, index: Tensor) -> Tensor:
        """z (t, 1 + 2 * num_bands). The lowest frequency is 1e-4, not 0, as published."""
        bands = torch.linspace(1e-4, self.num_bands - 1, self.num_bands, device=index.device, dtype=index.dtype)
        angles = bands * (2 * math.pi * index / self.max_length)
        return torch.cat([self._progress(index), angles.cos(), -angles.sin()], dim=-1)

    def _decay(self, index: Tensor) -> Tensor:
        """The window (t, d)."""
        slowest, fastest = (-math.log(TARGET) / part for part in (SLOWEST, FASTEST))
        rates = torch.linspace(slowest, fastest, self.channels, device=index.device, dtype=index.dtype)
        return torch.exp(-rates * self._progress(index))

    def _progress(self, index: Tensor) -> Tensor:
        return index / max(self.max_length - 1, 1)


def check_length(where: str, seen: int, max_length: int) -> None:
    if seen > max_length:
        raise ValueError(
            f"{where}: at most max_length={max_length} tokens, got {seen}; build it with a larger max_length"
        )


class History(NamedTuple):
    """Every input so far, which is the state of a long convolution, and the taps that were drawn to meet it.

    Under torch.no_grad() taps are drawn for twice the tokens that there are, and again only when these run out. They
    belong to the weights, the same for all sequences, so `nbytes` does not count them.
    """

    cache: Cache
    taps: Tensor | None = None  # (n, d), the last row is that of distance 0

    @classmethod
    def of(cls, x: Tensor) -> "History":
        """The first tokens (b, t, d)."""
        return cls(Cache.of(x[:, :, None]))  # one head

    @property
    def tokens(self) -> tuple[Tensor]:
        return self.cache.tokens

    def append(self, x: Tensor, filter: ExplicitFilter | ImplicitFilter) -> "History":
        """The tokens held and then x (b, t, d)."""
        cache, taps = self.cache.append(x[:, :, None]), self.taps
        if torch.is_grad_enabled():
            taps = filter(len(cache)).T.flip(0)
        elif taps is None or len(taps) < len(cache):
            taps = filter(min(2 * len(cache), filter.max_length)).T.flip(0)
        return History(cache, taps)

    def convolve_newest(self, t: int, backend: str) -> Tensor:
        """Outputs (b, t, d) of the causal convolution at the newest t tokens.

        One token is a sum over the history, O(s d). More are read off a convolution of the whole, O(s log s d).
        """
        (seen,) = (x.squeeze(2) for x in self.tokens)  # (b, s, d)
        taps = self.taps[-seen.shape[1] :]
        if t > 1:
            return long_conv(seen, taps.flip(0).T.to(seen.dtype), backend=backend)[:, -t:]
        return (seen.to(taps.dtype) * taps).sum(dim=1, keepdim=True).to(seen.dtype)

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def detach(self) -> "History":
        return History(self.cache.detach(), None if self.taps is None else self.taps.detach())

    def emptied(self) -> "History":
        return History(self.cache.emptied())

    @classmethod
    def join(cls, histories: list["History"]) -> "History":
        """The rows of all these. Tokens that a row lacks are zeros before its first, which a convolution ignores."""
        return cls(Cache.join([history.cache for history in histories]))

    def index_select(self, dim: int, rows: Tensor) -> "History":
        return History(self.cache.index_select(dim, rows), self.taps)


def toeplitz(filter: Tensor) -> Tensor:
    """The matrix (d, t, t) that convolves causally with a filter (d, t): entry (i, j) is tap i - j."""
    t = filter.shape[-1]
    padded = F.pad(filter.flip(-1), (0, t - 1))  # (d, 2 t - 1): tap t - 1 first, zeros after tap 0
    return padded.unfold(-1, t, 1).flip(-2)
