"""RGLRU: a gated linear recurrence of channels, Griffin's recurrent block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.linear_recurrence import linear_recurrence

from ._decay import in_float32, inverse_softplus
from ._mixer import Mixer, head_size
from ._short_conv import ShortConv

SHARPNESS = 8.0  # c in the paper
TINY = 1e-12  # least 1 - a^2: the slope of its root is without bound at zero
MIN_DECAY, MAX_DECAY = 0.9, 0.999  # of a whole gate, at the start


class RGLRU(Mixer):
    """Griffin's recurrent block with the real-gated linear recurrent unit (De et al. 2024, arXiv 2402.19427, eq. 1-4).

    x -> u: short convolution -> h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t u_t -> h * gelu(W x) -> out, with the gates
    r = sigmoid(W u + b), i = sigmoid(W u + b) and log a = -8 softplus(lambda) r. The gates' matrices are block
    diagonal, as in the authors' code; h is zero before the first token, whose input is weighed as any other.

    Args:
        d_model: width of the input and of the output.
        expand: width of the recurrence over d_model.
        num_heads: blocks of the gates' matrices; divides the width.
        conv_width: taps of the short convolution, with a bias, or None.
        backend: passed to the ops.
    """

    values = "x"

    def __init__(
        self,
        d_model: int,
        *,
        expand: int = 1,
        num_heads: int = 4,
        conv_width: int | None = 4,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        width = expand * d_model
        block = head_size(self.name, width, num_heads)
        self.in_proj = nn.Linear(d_model, width, **factory)
        self.conv = ShortConv(width, conv_width, bias=True, backend=backend, **factory)
        self.gates_weight = nn.Parameter(torch.empty(2, num_heads, block, block, **factory))  # of r, of i
        self.gates_bias = nn.Parameter(torch.zeros(2, num_heads, block, **factory))
        self.decay_logit = nn.Parameter(torch.empty(width, **factory))  # lambda
        self.gate_proj = nn.Linear(d_model, width, **factory)
        self.out_proj = nn.Linear(width, d_model, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """a^2 uniform in [0.9^2, 0.999^2] where r = 1, as in the authors' code."""
        nn.init.normal_(self.gates_weight, std=self.gates_weight.shape[-1] ** -0.5)
        with torch.no_grad():
            squared = torch.empty_like(self.decay_logit).uniform_(MIN_DECAY**2, MAX_DECAY**2)
            self.decay_logit.copy_(inverse_softplus(-squared.log() / (2 * SHARPNESS)))

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        u, conv = self.conv(self.in_proj(x), conv)
        heads = u.unflatten(-1, (self.gates_weight.shape[1], -1))
        gates = torch.einsum("bthi, ghij -> gbthj", heads, self.gates_weight.to(u.dtype))
        gates = in_float32(gates) + in_float32(self.gates_bias)[:, None, None]
        read, enter = gates.sigmoid().flatten(-2)
        log_decay = -SHARPNESS * F.softplus(in_float32(self.decay_logit)) * read
        kept = (-torch.expm1(2 * log_decay)).clamp_min(TINY).sqrt()  # sqrt(1 - a^2)
        return dict(x=(kept * enter * u).to(u.dtype), log_decay=log_decay), conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return linear_recurrence(**inputs, state=memory, backend=self.backend)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(y * F.gelu(self.gate_proj(x), approximate="tanh"))
