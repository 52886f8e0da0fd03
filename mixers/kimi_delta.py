"""KimiDelta: a memory that corrects itself and fades channel by channel."""

import torch
from torch import Tensor, nn

from ._decay import StepDecay
from .delta_net import DeltaNet
from .gated_delta_net import RATES


class KimiDelta(DeltaNet):
    """Kimi Delta Attention: the delta rule with a decay a channel (Kimi Team 2025, arXiv 2510.26692, eq. 1 and 10).

    x -> q, k, v -> short convolution, silu -> delta_rule with q and k of unit norm, beta = sigmoid(W x) and
    log_decay = -exp(A_log) softplus(W W' x + dt_bias) -> norm * sigmoid(W W' x + b) -> out. The products W W' have the
    rank of a head's width.

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories.
        head_dim: channels of a head; d_model / num_heads if None.
        conv_width: taps of a short convolution on q, k and v, or None.
        negative_eigenvalues: beta up to 2 instead of 1 (Grazzi et al. 2024, 2411.12537).
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        head_dim: int | None = None,
        conv_width: int | None = 4,
        negative_eigenvalues: bool = False,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        factory = dict(device=device, dtype=dtype)
        super().__init__(
            d_model, num_heads=num_heads, head_dim=head_dim, conv_width=conv_width,
            negative_eigenvalues=negative_eigenvalues, backend=backend, **factory,
        )  # fmt: skip
        width = self.widths[2]
        rank = width // num_heads
        self.decay_proj = nn.Sequential(
            nn.Linear(d_model, rank, bias=False, **factory), nn.Linear(rank, width, bias=False, **factory)
        )
        self.decay = StepDecay(num_heads, rank, rates=RATES, **factory)
        self.gate_proj = nn.Sequential(
            nn.Linear(d_model, rank, bias=False, **factory), nn.Linear(rank, width, **factory)
        )

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        inputs, conv = super().project(x, conv, position)
        _, log_decay = self.decay(self.decay_proj(x))
        return inputs | dict(log_decay=log_decay), conv

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2) * torch.sigmoid(self.gate_proj(x)))
