"""Feature maps of linear attention as modules: some of them learn."""

import torch
from torch import Tensor, nn

from subquad.kernels.feature_maps import elu_plus_one, hedgehog, identity, relu_squared

POINTWISE = {"elu": elu_plus_one, "relu2": relu_squared, "identity": identity}


class PointwiseMap(nn.Module):
    """One function for every channel."""

    def __init__(self, name: str):
        super().__init__()
        self.function = POINTWISE[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class HedgehogMap(nn.Module):
    """[softmax(W x), softmax(-W x)] with one learned W per head: (b, t, h, k) -> (b, t, h, 2 k)."""

    def __init__(self, num_heads: int, head_dim: int, *, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, head_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity, as published: the map starts from the model's own queries and keys."""
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.weight.shape[-1]).expand_as(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return hedgehog(x, self.weight)


def make_feature_map(where: str, name: str, num_heads: int, head_dim: int, *, device=None, dtype=None) -> nn.Module:
    """A map of heads (b, t, h, k) -> (b, t, h, r), with parameters of its own if it learns."""
    if name == "hedgehog":
        return HedgehogMap(num_heads, head_dim, device=device, dtype=dtype)
    if name not in POINTWISE:
        known = ", ".join((*POINTWISE, "hedgehog"))
        raise ValueError(f"{where}: unknown feature_map {name!r}; expected one of {known}")
    return PointwiseMap(name)
