"""HGRN2: a gated recurrence whose state is widened by an outer product."""

import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.linear_attention import linear_attention

from ._decay import in_float32
from ._mixer import Mixer, head_size
from ._norms import HeadNorm
from ._short_conv import ShortConv


class HGRN2(Mixer):
    """HGRN2 (Qin et al. 2024, arXiv 2404.07904, eq. 6-8): the key is what the forget gate lets go.

    x -> silu(q), f, v -> linear_attention with decay g = lower_bound + (1 - lower_bound) sigmoid(f), k = 1 - g,
    scale 1 -> norm -> out.

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories.
        head_dim: channels of a head, which is the published expansion; d_model / num_heads if None.
        lower_bound: least decay, in [0, 1). The paper learns one a layer that grows with depth; this layer, which knows
            no depth, is told.
        conv_width: taps of a short convolution on q, f and v; none by default, as published.
        backend: passed to the ops.
    """

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        head_dim: int | None = None,
        lower_bound: float = 0.0,
        conv_width: int | None = None,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        if not 0 <= lower_bound < 1:
            raise ValueError(f"{self.name}: lower_bound must be in [0, 1), got {lower_bound}")
        self.num_heads, self.lower_bound = num_heads, lower_bound
        head_dim = head_size(self.name, d_model, num_heads, head_dim)
        width = num_heads * head_dim
        self.qfv_proj = nn.Linear(d_model, 3 * width, bias=False, **factory)
        self.conv = ShortConv(3 * width, conv_width, backend=backend, **factory)
        self.norm = HeadNorm(head_dim, **factory)
        self.out_proj = nn.Linear(width, d_model, bias=False, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        qfv, conv = self.conv(self.qfv_proj(x), conv)
        q, f, v = qfv.unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # each (b, t, h, k)
        forget = in_float32(f)
        k = (1 - self.lower_bound) * (-forget).sigmoid()  # 1 - g, without the difference
        log_decay = (-k).log1p() if self.lower_bound else F.logsigmoid(forget)
        return dict(q=F.silu(q), k=k.to(q.dtype), v=v, log_decay=log_decay), conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        return linear_attention(**inputs, scale=1.0, state=memory, backend=self.backend)

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(self.norm(y).flatten(-2))
