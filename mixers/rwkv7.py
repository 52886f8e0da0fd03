"""RWKV7: a memory that is asked, erased and written under different keys."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from subquad.kernels.generalized_delta_rule import generalized_delta_rule

from ._decay import in_float32
from ._mixer import Mixer, head_size
from .delta_net import EPS

BRANCHES = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}  # exponents that their token shifts start with
MAX_RATE = math.exp(-0.5)  # of decay: a channel keeps at least exp(-MAX_RATE) = 0.545 of what it holds


class RWKV7(Mixer):
    """Time mixing of RWKV-7 "Goose" (Peng et al. 2025, arXiv 2503.14456, sec. 4.1): the generalised delta rule.

    Each of r, w, k, v, a and g sees x + mu (x_{t-1} - x), with a learned mu a channel. Then, with head-wise products,

        key = normalize(k * key_scale) ,    rate = sigmoid(lora(a)) ,    log_decay = -exp(-1/2) sigmoid(lora(w))
        y = generalized_delta_rule(r, k (1 + (rate - 1) key_share), v, -key, key * rate, log_decay), scale 1
        out((norm(y) + (r * k' * bonus).sum() v) * lora(g)) ,    with k' the key that was written

    Parameters start as in the published code's first layer, but for the projections, which start as PyTorch's (there:
    smaller, and the output's at zero). That layer has no value residual, which would need the first layer's values.

    Args:
        d_model: width of the input and of the output.
        num_heads: number of memories; divides d_model. Published heads are 64 wide.
        rank: of the products that give decay, rate and gate; if None as published, which grows with sqrt(d_model).
        token_shift: False leaves out the previous token, to see what it alone is worth.
        backend: passed to the ops.
    """

    beside = ("bonus", "gate")

    def __init__(
        self,
        d_model: int,
        *,
        num_heads: int = 4,
        rank: int | None = None,
        token_shift: bool = True,
        backend: str = "auto",
        device=None,
        dtype=None,
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        head_dim = head_size(self.name, d_model, num_heads)
        if head_dim < 2:
            raise ValueError(f"{self.name}: a head's norm needs 2 channels; num_heads={num_heads} leaves {head_dim}")
        if rank is not None and rank < 1:
            raise ValueError(f"{self.name}: rank must be at least 1 or None, got {rank}")
        self.num_heads = num_heads
        self.shift = nn.Parameter(torch.empty(len(BRANCHES), d_model, **factory)) if token_shift else None
        self.r_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(d_model, d_model, bias=False, **factory) for _ in range(4)
        )
        narrow, wide = (rank or _published_rank(d_model, factor) for factor in (2.5, 5.0))
        self.decay = LowRank(d_model, narrow, torch.tanh, bias=True, **factory)
        self.rate = LowRank(d_model, narrow, None, bias=True, **factory)
        self.gate = LowRank(d_model, wide, torch.sigmoid, bias=False, **factory)
        self.key_scale, self.key_share = (nn.Parameter(torch.empty(d_model, **factory)) for _ in range(2))
        self.bonus = nn.Parameter(torch.empty(num_heads, head_dim, **factory))
        self.norm = nn.GroupNorm(num_heads, d_model, eps=1e-5 * head_dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Those of this module alone, and the biases of its low-rank products."""
        d, head_dim = self.d_model, self.d_model // self.num_heads
        like = dict(device=self.bonus.device, dtype=torch.float64)
        along = torch.arange(d, **like)
        line = along / max(1, d - 1)
        zigzag = (along % head_dim) * 2 / (head_dim - 1) - 1  # from -1 to 1 in each head
        zigzag = zigzag * zigzag.abs()
        with torch.no_grad():
            if self.shift is not None:
                for mu, exponent in zip(self.shift, BRANCHES.values(), strict=True):
                    mu.copy_(1 - (along / d) ** exponent)
            self.decay.bias.copy_(6 * line - 5.5 + 2.5 * zigzag)
            self.rate.bias.copy_(0.3 * zigzag + 0.4 * (line - 0.5) - 0.19)
            self.key_scale.copy_(0.71 - 0.1 * (line - 0.5))
            self.key_share.fill_(1.02)
            self.bonus.fill_(-0.04)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        r, w, k, v, a, g = (x,) * len(BRANCHES)
        if self.shift is not None:
            change = torch.cat([self._before(x, conv), x[:, :-1]], dim=1) - x
            r, w, k, v, a, g = (torch.addcmul(x, change, mu.to(x.dtype)) for mu in self.shift)
            conv = x[:, -1:].clone()
        r, k, v = (self._heads(part) for part in (self.r_proj(r), self.k_proj(k), self.v_proj(v)))
        rate = self._heads(self.rate(a).sigmoid())
        key = F.normalize(k * self._heads(self.key_scale).to(k.dtype), dim=-1, eps=EPS)
        written = torch.addcmul(k, k * (rate - 1), self._heads(self.key_share).to(k.dtype))
        log_decay = -MAX_RATE * self._heads(in_float32(self.decay(w)).sigmoid())
        inputs = dict(q=r, k=written, v=v, a=-key, b=key * rate, log_decay=log_decay)
        bonus = (r * written * self.bonus.to(r.dtype)).sum(-1, keepdim=True) * v
        return inputs | dict(bonus=bonus, gate=self.gate(g)), conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        of_op = {name: x for name, x in inputs.items() if name not in self.beside}
        return generalized_delta_rule(**of_op, scale=1.0, state=memory, backend=self.backend)

    def merge(self, x: Tensor, y: Tensor, bonus: Tensor, gate: Tensor) -> Tensor:
        normed = self.norm(y.flatten(-2).flatten(0, 1)).view_as(y).to(y.dtype)
        return self.out_proj((normed + bonus).flatten(-2) * gate)

    def _before(self, x: Tensor, conv: Tensor | None) -> Tensor:
        """The token before the first, (b, 1, d); zero if there is none."""
        if conv is None:
            return torch.zeros_like(x[:, :1])
        if conv.shape[0] != x.shape[0]:
            raise ValueError(f"{self.name}: state is of b={conv.shape[0]} rows, but x has b={x.shape[0]}")
        return conv.to(x.dtype)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))


class LowRank(nn.Module):
    """f(x W) W' + bias, of the rank of W and W'. W starts at zero, so the bias alone decides at first.

    Args:
        d_model: width of the input and of the output.
        rank: columns of W.
        activation: f; None is the identity.
        bias: add one; it is set by the module that owns this.
    """

    def __init__(self, d_model: int, rank: int, activation, *, bias: bool, device=None, dtype=None):
        super().__init__()
        factory = dict(device=device, dtype=dtype)
        self.activation = activation
        self.down = nn.Parameter(torch.zeros(rank, d_model, **factory))
        self.up = nn.Parameter(torch.empty(d_model, rank, **factory))
        self.bias = nn.Parameter(torch.zeros(d_model, **factory)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.down)
        nn.init.orthogonal_(self.up, gain=0.1 * max(1.0, self.up.shape[1] / self.up.shape[0]) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.down)
        return F.linear(x if self.activation is None else self.activation(x), self.up, self.bias)


def _published_rank(d_model: int, factor: float) -> int:
    """factor sqrt(d_model), to the nearest multiple of 32."""
    return max(32, round(factor * d_model**0.5 / 32) * 32)
