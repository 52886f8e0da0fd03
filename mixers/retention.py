"""Retention: linear attention whose heads forget at fixed rates, with rotated queries and keys and an output gate."""

import torch.nn.functional as F
from torch import Tensor, nn

from .linear_attention import LinearAttention


class Retention(LinearAttention):
    """Multi-scale retention (Sun et al. 2023, arXiv 2307.08621, eq. 5-8).

    x -> q, k, v -> rotary -> linear_attention, head i fading by 1 - 2^(-5-i) -> norm of each head * silu(W x) -> out.

    Values are as wide as the input; the paper's language models double them and narrow the feed-forward layers. The
    norm is the RMS norm of the authors' later code.

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories; divides d_model.
        rotary_base: longest wavelength of rotary positions, over 2 pi.
        conv_width: taps of a short convolution on q, k and v; none by default.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        rotary_base: float = 10_000.0,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(
            d_model, num_heads=num_heads, feature_map="identity", decay="retention", normalize="head",
            rotary_base=rotary_base, conv_width=conv_width, backend=backend, device=device, dtype=dtype,
        )  # fmt: skip
        self.gate_proj = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2) * F.silu(self.gate_proj(x)))
