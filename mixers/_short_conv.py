"""The optional short convolution of a mixer, with its parameters."""

import torch
from torch import Tensor, nn

from subquad.kernels.short_conv import MAX_WIDTH, short_conv


class ShortConv(nn.Module):
    """Depthwise causal filter over the last `width` tokens of (b, t, channels), without activation.

    On q, k and v together it is the multi-dconv-head attention of Primer (So et al. 2021, arXiv 2109.08668, sec. 3).

    Args:
        channels: number of channels, each with its own filter.
        width: taps of a filter, 1 to 8; None passes x through and needs no state.
        bias: add a learned bias.
        backend: passed to the op.
    """

    def __init__(
        self, channels: int, width: int | None, *, bias: bool = False, backend: str = "auto", device=None, dtype=None
    ):
        super().__init__()
        if width is not None and not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"conv_width must be 1 to {MAX_WIDTH} or None, got {width}")
        self.backend = backend
        self.weight = self.bias = None
        if width is not None:
            self.weight = nn.Parameter(torch.empty(channels, width, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if bias else None
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """What nn.Conv1d draws for a depthwise filter: its fan-in is the width."""
        bound = self.weight.shape[1] ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """y (b, t, channels) and the last width - 1 inputs."""
        if self.weight is None:
            return x, None
        return short_conv(x, self.weight, self.bias, state=state, backend=self.backend)

    def extra_repr(self) -> str:
        return "none" if self.weight is None else f"{self.weight.shape[0]}, width={self.weight.shape[1]}"
