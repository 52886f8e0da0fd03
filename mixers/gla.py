"""GLA: linear attention whose memory fades channel by channel."""

import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.linear_attention import linear_attention

from ._decay import in_float32
from ._mixer import Mixer, head_size
from ._norms import HeadNorm
from ._short_conv import ShortConv

DECAY_RANK = 16
TEMPERATURE = 16.0  # the logarithm of the decay is divided by it, so that memories begin long


class GLA(Mixer):
    """Gated linear attention (Yang et al. 2023, arXiv 2312.06635, eq. 3 and sec. 4.4).

    x -> q, k, v -> linear_attention with log_decay = logsigmoid(W W' x + b) / 16 -> norm * silu(W x) -> out.

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories.
        head_dim: channels of a head; d_model / num_heads if None.
        expand_k: width of q and of k over that of v.
        conv_width: taps of a short convolution on q, k and v, then silu; none by default, as published.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        head_dim: int | None = None,
        expand_k: float = 0.5,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        head_dim = head_size(self.name, d_model, num_heads, head_dim)
        values = num_heads * head_dim
        width = int(expand_k * values)
        head_size(self.name, width, num_heads)
        self.num_heads = num_heads
        self.widths = (width, width, values)  # of q, k and v
        self.qkv_proj = nn.Linear(d_model, sum(self.widths), bias=False, **factory)
        self.conv = ShortConv(sum(self.widths), conv_width, backend=backend, **factory)
        self.decay_proj = nn.Sequential(
            nn.Linear(d_model, DECAY_RANK, bias=False, **factory), nn.Linear(DECAY_RANK, width, **factory)
        )
        self.gate_proj = nn.Linear(d_model, values, bias=False, **factory)
        self.norm = HeadNorm(head_dim, **factory)
        self.out_proj = nn.Linear(values, d_model, bias=False, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        qkv, conv = self.conv(self.qkv_proj(x), conv)
        qkv = qkv if self.conv.weight is None else F.silu(qkv)
        log_decay = F.logsigmoid(in_float32(self.decay_proj(x))) / TEMPERATURE
        parts = (*qkv.split(self.widths, dim=-1), log_decay)
        names = ("q", "k", "v", "log_decay")
        return {name: z.unflatten(-1, (self.num_heads, -1)) for name, z in zip(names, parts, strict=True)}, conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return linear_attention(**inputs, state=memory, backend=self.backend)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2) * F.silu(self.gate_proj(x)))
