"""Hyena: a long convolution between two gates, its filter drawn by a small network."""

import torch
from torch import Tensor, nn

from subquad.kernels.long_conv import long_conv

from ._long_filter import History, ImplicitFilter, check_length, toeplitz
from ._mixer import Mixer
from ._short_conv import ShortConv


class Hyena(Mixer):
    """The Hyena operator of order 2 (Poli et al. 2023, arXiv 2302.10866, sec. 3).

    x -> post_gate, pre_gate, v -> short convolution -> long_conv(pre_gate * v) with a skip, times post_gate -> out.

    There is no recurrence of fixed size: the state is the history pre_gate * v of all tokens, and a step reads all
    of it, O(t d).

    Args:
        d_model: width of the input and of the output.
        max_length: longest sequence; the features of the filter's positions are relative to it.
        conv_width: taps of the short convolution on the three projections; None for none.
        num_bands, hidden_dim, frequency: of the filter's network, see ImplicitFilter.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        max_length: int = 1024,
        conv_width: int | None = 3,
        num_bands: int = 1,
        hidden_dim: int = 64,
        frequency: float = 1.0,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        if max_length < 1:
            raise ValueError(f"{self.name}: max_length must be at least 1, got {max_length}")
        self.max_length = max_length
        self.in_proj = nn.Linear(d_model, 3 * d_model, **factory)
        self.conv = ShortConv(3 * d_model, conv_width, bias=True, backend=backend, **factory)
        self.filter = ImplicitFilter(
            d_model, max_length, num_bands=num_bands, hidden_dim=hidden_dim, frequency=frequency, **factory
        )
        self.skip = nn.Parameter(torch.randn(d_model, **factory))  # N(0, 1), as published
        self.out_proj = nn.Linear(d_model, d_model, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        check_length(self.name, position + x.shape[1], self.max_length)
        mixed, conv = self.conv(self.in_proj(x), conv)
        post_gate, pre_gate, v = mixed.chunk(3, dim=-1)  # each (b, t, d)
        return dict(v=v, pre_gate=pre_gate, post_gate=post_gate), conv

    def mix(self, inputs: dict[str, Tensor], memory: History | None) -> tuple[Tensor, History]:
        v, pre_gate, post_gate = inputs["v"], inputs["pre_gate"], inputs["post_gate"]
        gated = pre_gate * v
        if memory is None:
            taps = self.filter(v.shape[1]).to(v.dtype)
            y = long_conv(v, taps, self.skip, pre_gate=pre_gate, post_gate=post_gate, backend=self.backend)
            return y, History.of(gated)
        memory = memory.append(gated, self.filter)
        y = memory.convolve_newest(v.shape[1], self.backend)
        return post_gate * (y + self.skip.to(y.dtype) * gated), memory

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(y)

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """The weights (b, d, t, t) of each channel: post_gate_t * (filter_{t-s} + skip at t = s) * pre_gate_s."""
        inputs, _ = self.project(x, None, 0)
        taps = self.filter(x.shape[1]).to(x.dtype)
        taps = torch.cat([taps[:, :1] + self.skip[:, None].to(x.dtype), taps[:, 1:]], dim=1)
        post_gate, pre_gate = (inputs[name].transpose(1, 2) for name in ("post_gate", "pre_gate"))  # (b, d, t)
        return post_gate[..., None] * toeplitz(taps) * pre_gate[..., None, :]
