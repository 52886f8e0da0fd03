"""BaseConv: a projection times a convolution, the smallest model of the gated convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.long_conv import long_conv

from ._long_filter import ExplicitFilter, History, ImplicitFilter, check_length, toeplitz
from ._mixer import Mixer
from ._short_conv import ShortConv


class BaseConv(Mixer):
    """y = (x W + b1) * (filter conv x + b2), channel by channel (Arora et al. 2023, arXiv 2312.04927, sec. 4).

    x -> gate; x -> short or long convolution; their product is the output (the published code adds x, which here is
    the residual's business). The state of a short filter is its last inputs. That of a long one is every input, and
    a step reads them all.

    Args:
        d_model: width of the input and of the output.
        conv_width: taps of the short filter; None for a filter as long as the sequence.
        max_length: longest sequence, which is the number of a long filter's taps; None, for a short one, is no limit.
        implicit: draw the long filter with Hyena's network (Zoology's figure 2) instead of learning each tap.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        conv_width: int | None = 3,
        max_length: int | None = None,
        implicit: bool = False,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        self.is_long = conv_width is None
        self.max_length = max_length
        self.gate_proj = nn.Linear(d_model, d_model, **factory)
        if max_length is None and self.is_long:
            raise ValueError(f"{self.name}: conv_width=None asks for a long filter, which needs max_length; got None")
        if max_length is not None and max_length < 1:
            raise ValueError(f"{self.name}: max_length must be at least 1, got {max_length}")
        if implicit and not self.is_long:
            raise ValueError(f"{self.name}: only a long filter is implicit, set conv_width=None; got {conv_width}")
        if not self.is_long:
            self.conv = ShortConv(d_model, conv_width, bias=True, backend=backend, **factory)
            return
        # 16 is the hidden width of Zoology's implicit filter; Hyena's own is 64.
        implicit_filter = ImplicitFilter(d_model, max_length, hidden_dim=16, **factory) if implicit else None
        self.filter = implicit_filter or ExplicitFilter(d_model, max_length, **factory)
        self.bias = nn.Parameter(torch.zeros(d_model, **factory))

    def project(self, x: Tensor, conv: None, position: int) -> tuple[dict[str, Tensor], None]:
        if self.max_length is not None:
            check_length(self.name, position + x.shape[1], self.max_length)
        return dict(x=x, gate=self.gate_proj(x)), None

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | History | None) -> tuple[Tensor, Tensor | History]:
        y, memory = self._convolve_long(inputs["x"], memory) if self.is_long else self.conv(inputs["x"], memory)
        return inputs["gate"] * y, memory

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """The weights (b, d, t, t) of each channel: gate_t * filter_{t-s}. y = matrix @ x + gate * b2."""
        gate = self.project(x, None, 0)[0]["gate"].transpose(1, 2)  # (b, d, t)
        return gate[..., None] * toeplitz(self._taps(x.shape[1]).to(gate.dtype))

    def _convolve_long(self, x: Tensor, memory: History | None) -> tuple[Tensor, History]:
        t = x.shape[1]
        if memory is None:
            y = long_conv(x, self.filter(t).to(x.dtype), backend=self.backend)
            memory = History.of(x)
        else:
            memory = memory.append(x, self.filter)
            y = memory.convolve_newest(t, self.backend)
        return y + self.bias.to(y.dtype), memory

    def _taps(self, t: int) -> Tensor:
        """The filter over the distances 0 to t - 1, (d, t)."""
        if self.is_long:
            return self.filter(t)
        taps = self.conv.weight.flip(1)[:, :t]
        return F.pad(taps, (0, t - taps.shape[1]))
