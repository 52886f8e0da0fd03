"""H3: what a token compares and what it stores, by a shift, a product, and a diagonal state space."""

import torch
from torch import Tensor, nn

from ._mixer import Mixer
from ._short_conv import ShortConv
from .s4d import DiagonalStateSpace, convolve, filter_matrix


class H3(Mixer):
    """Hungry Hungry Hippos with heads of width one (Fu et al. 2022, arXiv 2212.14052, alg. 1).

    x -> q, k, v -> q * ssm_diag(ssm_shift(k) * v) -> out. The shift state space is a short convolution: its states are
    the last `shift` keys. ssm_diag is S4D's, with the skip D.

    Args:
        d_model: width of the input and of the output.
        d_state: real states of a channel of the diagonal space, an even number.
        shift: states of the shift space: taps of the short convolution, 1 to 8.
        backend: passed to the ops.
    """

    def __init__(
        self, d_model: int, *, d_state: int = 64, shift: int = 4, backend: str = "auto", device=None, dtype=None
    ):
        super().__init__(d_model, backend)
        factory = dict(device=device, dtype=dtype)
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, **factory)
        self.conv = ShortConv(d_model, shift, backend=backend, **factory)
        self.space = DiagonalStateSpace(d_model, d_state, **factory)
        self.D = nn.Parameter(torch.randn(d_model, **factory))
        self.out_proj = nn.Linear(d_model, d_model, **factory)

    def project(self, x: Tensor, conv: Tensor | None, position: int) -> tuple[dict[str, Tensor], Tensor | None]:
        q, k, v = self.qkv_proj(x).chunk(3, dim=-1)  # each (b, t, d)
        k, conv = self.conv(k, conv)
        return dict(q=q, k=k, v=v), conv

    def mix(self, inputs: dict[str, Tensor], memory: Tensor | None) -> tuple[Tensor, Tensor]:
        y, memory = convolve(self.space, inputs["k"] * inputs["v"], self.D, memory, self.backend)
        return inputs["q"] * y, memory

    def merge(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out_proj(y)

    def mixing_matrix(self, x: Tensor) -> Tensor:
        """The weights (b, d, t, t) of each channel: q_t * (filter at t - s, and D at t = s) * k_s."""
        inputs, _ = self.project(x, None, 0)
        q, k = (inputs[name].transpose(1, 2) for name in ("q", "k"))  # (b, d, t)
        return q[..., None] * filter_matrix(self.space, self.D, x) * k[..., None, :]
