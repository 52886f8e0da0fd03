"""Retention: linear attention whose heads forget at fixed rates, with rotated queries and keys and an output gate."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear_attention import LinearAttention

GAIN = 2**-2.5  # the authors' code: smaller q, k, v keep the unnormalised sums small at the start


class Retention(LinearAttention):
    """Multi-scale retention (Sun et al. 2023, arXiv 2307.08621, eq. 5-8).

    x -> q, k, v -> rotary -> linear_attention, head i fading by 1 - 2^(-5-i) -> norm of each head * silu(W x) -> out.

    Values are as wide as the input; the paper's language models double them and narrow the feed-forward layers. The
    norm is the RMS norm of the authors' later code.

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories.
        head_dim: channels of a head; d_model / num_heads if None.
        rotary_base: longest wavelength of rotary positions, over 2 pi; none if None.
        conv_width: taps of a short convolution on q, k and v; none by default.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        head_dim: int | None = None,
        rotary_base: float | None = 10_000.0,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(
            d_model, num_heads=num_heads, head_dim=head_dim, feature_map="identity", normalize="head",
            rotary_base=rotary_base, conv_width=conv_width, backend=backend, device=device,
            dtype=dtype,
        )  # fmt: skip
        self.gate_proj = nn.Linear(d_model, num_heads * self.head_dim, bias=False, device=device, dtype=dtype)
        for weight in self.qkv_proj.weight.chunk(3):
            nn.init.xavier_uniform_(weight, gain=GAIN)
        nn.init.xavier_uniform_(self.out_proj.weight)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        inputs, conv = super().project(x, conv, position)
        return inputs | dict(log_decay=_log_decay(inputs["v"]).expand(inputs["v"].shape[:3])), conv

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2) * F.silu(self.gate_proj(x)))


def _log_decay(v: Tensor) -> Tensor:
    """log(1 - 2^(-5-i)) of head i, (h,) in float32 or wider."""
    compute = torch.promote_types(v.dtype, torch.float32)
    heads = torch.arange(v.shape[2], device=v.device, dtype=compute)
    return torch.log1p(-(2.0 ** (-5 - heads)))
