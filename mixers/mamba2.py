"""Mamba2: a state space whose matrix is one number a head, which makes it linear attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.linear_attention import linear_attention

from ._decay import StepDecay
from ._mixer import Mixer, head_size
from ._short_conv import ShortConv


class Mamba2(Mixer):
    """Mamba-2 (Dao & Gu 2024, arXiv 2405.21060, sec. 7 and fig. 6), in the terms of attention: q = C, k = dt B, v = x.

    x -> v, B, C -> short convolution, silu -> linear_attention with log_decay = -exp(A_log) dt,
    dt = softplus(W x + dt_bias), plus D v -> RMS norm of y * silu(W x) -> out. B and C are shared by all heads.

    Args:
        d_model: width of the input and of the output.
        expand: width of v over d_model.
        num_heads: heads, each with a decay of its own; divides expand * d_model.
        d_state: width of B and of C.
        conv_width: taps of a short convolution on v, B and C, with a bias, or None.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        expand: int = 2,
        num_heads: int = 4,
        d_state: int = 128,
        conv_width: int | None = 4,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        width = expand * d_model
        head_size(self.name, width, num_heads)
        self.num_heads = num_heads
        self.widths = (width, d_state, d_state)  # of v, B and C
        self.in_proj = nn.Linear(d_model, sum(self.widths), bias=False, **factory)
        self.conv = ShortConv(sum(self.widths), conv_width, bias=True, backend=backend, **factory)
        self.dt_proj = nn.Linear(d_model, self.num_heads, bias=False, **factory)
        self.decay = StepDecay(self.num_heads, **factory)
        self.D = nn.Parameter(torch.ones(self.num_heads, 1, **factory))
        self.gate_proj = nn.Linear(d_model, width, bias=False, **factory)
        self.norm = nn.RMSNorm(width, eps=1e-5, **factory)
        self.out_proj = nn.Linear(width, d_model, bias=False, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        mixed, conv = self.conv(self.in_proj(x), conv)
        v, B, C = F.silu(mixed).split(self.widths, dim=-1)
        dt, log_decay = self.decay(self.dt_proj(x))  # (b, t, h, 1)
        k = (B[:, :, None] * dt).to(B.dtype)
        q = C[:, :, None].expand_as(k)
        return dict(q=q, k=k, v=v.unflatten(-1, (self.num_heads, -1)), log_decay=log_decay.squeeze(-1)), conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        y, memory = linear_attention(**inputs, scale=1.0, state=memory, backend=self.backend)
        return y + self.D.to(y.dtype) * inputs["v"], memory

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        y = y.flatten(-2) * F.silu(self.gate_proj(x))
        return self.out_proj(F.rms_norm(y, self.norm.normalized_shape, self.norm.weight.to(y.dtype), self.norm.eps))
