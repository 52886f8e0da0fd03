"""How recurrent mixers fade: a step that depends on the token, times a learned rate."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_STEP, MAX_STEP = 1e-3, 1e-1  # at the start, of a token that asks for nothing


def in_float32(x: Tensor) -> Tensor:
    """x in float32 or wider: decays are exponents, and half precision has too few digits for them."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


def draw_step_bias(bias: Tensor) -> None:
    """Fill it so that softplus(bias) is log-uniform in [MIN_STEP, MAX_STEP] (Gu & Dao 2023, arXiv 2312.00752, 3.6)."""
    with torch.no_grad():
        steps = torch.empty_like(bias).uniform_(math.log(MIN_STEP), math.log(MAX_STEP)).exp_()
        bias.copy_(inverse_softplus(steps))


class StepDecay(nn.Module):
    """dt = softplus(x + dt_bias),  log_decay = -exp(A_log) dt: Mamba-2's gate (arXiv 2405.21060), one rate a head.

    Args:
        num_heads: heads, each with a rate exp(A_log).
        channels: steps of a head.
        rates: the range from which rates are drawn at the start.
    """

    def __init__(
        self, num_heads: int, channels: int = 1, *, rates: tuple[float, float] = (1.0, 16.0), device=None, dtype=None
    ):
        super().__init__()
        self.rates = rates
        self.A_log = nn.Parameter(torch.empty(num_heads, 1, device=device, dtype=dtype))
        self.dt_bias = nn.Parameter(torch.empty(num_heads, channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.A_log.uniform_(*self.rates).log_()
        draw_step_bias(self.dt_bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """dt and log_decay (b, t, h, channels) of x (b, t, h channels), in float32 or wider."""
        steps = F.softplus(in_float32(x).unflatten(-1, self.dt_bias.shape) + in_float32(self.dt_bias))
        return steps, -in_float32(self.A_log).exp() * steps
