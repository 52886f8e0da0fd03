"""Mamba: a diagonal state space whose step, entry and reading depend on the token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.selective_scan import selective_scan

from ._decay import draw_step_bias, in_float32
from ._mixer import Mixer
from ._short_conv import ShortConv


class Mamba(Mixer):
    """Mamba (Gu & Dao 2023, arXiv 2312.00752, fig. 3 and alg. 2), initialised as in the authors' code.

    x -> short convolution, silu -> selective_scan with dt = softplus(W W' u + dt_bias), B and C from u, A = -exp(A_log)
    -> y * silu(W x) -> out, where u is what the scan is given.

    Args:
        d_model: width of the input and of the output.
        expand: width of the scan over d_model.
        d_state: states of a channel.
        dt_rank: rank of what dt is made from; d_model / 16, rounded up, if None.
        conv_width: taps of the short convolution, with a bias, or None.
        backend: passed to the ops.
    """

    values = "x"

    def __init__(
        self,
        d_model: int,
        *,
        expand: int = 2,
        d_state: int = 16,
        dt_rank: int | None = None,
        conv_width: int | None = 4,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        width, dt_rank = expand * d_model, -(-d_model // 16) if dt_rank is None else dt_rank
        self.widths = (dt_rank, d_state, d_state)  # of what dt is made from, B and C
        self.in_proj = nn.Linear(d_model, width, bias=False, **factory)
        self.conv = ShortConv(width, conv_width, bias=True, backend=backend, **factory)
        self.x_proj = nn.Linear(width, sum(self.widths), bias=False, **factory)
        self.dt_proj = nn.Linear(dt_rank, width, **factory)
        self.A_log = nn.Parameter(torch.empty(width, d_state, **factory))
        self.D = nn.Parameter(torch.ones(width, **factory))
        self.gate_proj = nn.Linear(d_model, width, bias=False, **factory)
        self.out_proj = nn.Linear(width, d_model, bias=False, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A_n = -(n + 1), S4D-Real; the steps log-uniform in [0.001, 0.1]."""
        bound = self.widths[0] ** -0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        draw_step_bias(self.dt_proj.bias)
        with torch.no_grad():
            rates = torch.arange(1, self.A_log.shape[1] + 1, dtype=self.A_log.dtype, device=self.A_log.device)
            self.A_log.copy_(rates.log().expand_as(self.A_log))

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        u, conv = self.conv(self.in_proj(x), conv)
        u = F.silu(u)
        steps, B, C = self.x_proj(u).split(self.widths, dim=-1)
        raw = in_float32(F.linear(steps, self.dt_proj.weight))
        return dict(x=u, dt=F.softplus(raw + in_float32(self.dt_proj.bias)), B=B, C=C), conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        A = -in_float32(self.A_log).exp()
        return selective_scan(**inputs, A=A, D=self.D, state=memory, backend=self.backend)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(y * F.silu(self.gate_proj(x)))
