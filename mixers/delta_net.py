"""DeltaNet: linear attention whose memory corrects itself."""

import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.delta_rule import delta_rule

from ._mixer import Mixer, head_size
from ._norms import HeadNorm
from ._short_conv import ShortConv

EPS = 1e-6  # least norm of a query or key; what it is in float16 too


class DeltaNet(Mixer):
    """Delta-rule memory, one per head (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, 2406.06484).

    x -> q, k, v -> short convolution, silu -> delta_rule with q and k of unit norm, beta = sigmoid(W x) -> norm -> out.

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
        expand_v: int = 1,
        conv_width: int | None = 4,
        negative_eigenvalues: bool = False,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        width = num_heads * head_size(self.name, d_model, num_heads, head_dim)
        self.num_heads, self.beta_scale = num_heads, 2.0 if negative_eigenvalues else 1.0
        self.widths = (width, width, expand_v * width)  # of q, k and v
        self.qkv_proj = nn.Linear(d_model, sum(self.widths), bias=False, **factory)
        self.conv = ShortConv(sum(self.widths), conv_width, backend=backend, **factory)
        self.beta_proj = nn.Linear(d_model, num_heads, bias=False, **factory)
        self.norm = HeadNorm(self.widths[2] // num_heads, **factory)
        self.out_proj = nn.Linear(self.widths[2], d_model, bias=False, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        qkv, conv = self.conv(self.qkv_proj(x), conv)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in F.silu(qkv).split(self.widths, dim=-1))
        beta = self.beta_proj(x).sigmoid() * self.beta_scale
        return dict(q=F.normalize(q, dim=-1, eps=EPS), k=F.normalize(k, dim=-1, eps=EPS), v=v, beta=beta), conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return delta_rule(**inputs, state=memory, backend=self.backend)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2))
