"""GatedDeltaNet: a memory that corrects itself and fades."""

import torch.nn.functional as F
from torch import Tensor, nn

from ._decay import StepDecay
from .delta_net import DeltaNet

RATES = (1e-3, 16.0)  # published as U(0, 16); a rate of zero has no logarithm


class GatedDeltaNet(DeltaNet):
    """Delta rule with a decay a head (Yang et al. 2024, arXiv 2412.06464, eq. 10 and fig. 1).

    x -> q, k, v -> short convolution, silu -> delta_rule with q and k of unit norm, beta = sigmoid(W x) and
    log_decay = -exp(A_log) softplus(W x + dt_bias) -> norm * silu(W x) -> out.

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories.
        head_dim: channels of a head; d_model / num_heads if None.
        expand_v: values are this many times as wide as keys.
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
        expand_v: int = 2,
        conv_width: int | None = 4,
        negative_eigenvalues: bool = False,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        factory = dict(device=device, dtype=dtype)
        super().__init__(
            d_model, num_heads=num_heads, head_dim=head_dim, expand_v=expand_v, conv_width=conv_width,
            negative_eigenvalues=negative_eigenvalues, backend=backend, **factory,
        )  # fmt: skip
        self.decay_proj = nn.Linear(d_model, num_heads, bias=False, **factory)
        self.decay = StepDecay(num_heads, rates=RATES, **factory)
        self.gate_proj = nn.Linear(d_model, self.widths[2], bias=False, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        inputs, conv = super().project(x, conv, position)
        _, log_decay = self.decay(self.decay_proj(x))
        return inputs | dict(log_decay=log_decay.squeeze(-1)), conv

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2) * F.silu(self.gate_proj(x)))
