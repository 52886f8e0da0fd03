"""phi: (..., k) -> (..., r), what linear attention applies to queries and keys in place of softmax's exponential."""

import torch
import torch.nn.functional as F
from torch import Tensor


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1: positive, x + 1 above zero and exp(x) below. (..., k) -> (..., k).

    Source: Katharopoulos et al. 2020 (arXiv 2006.16236), eq. 7.
    """
    return F.elu(x) + 1


def relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2: not negative, and sparse. (..., k) -> (..., k).

    Source: Zhang et al. 2021 (arXiv 2104.07012) for the rectified score, So et al. 2021 (2109.08668) for the square.
    """
    return F.relu(x).square()


def identity(x: Tensor) -> Tensor:
    """x itself: weights are plain dot products, of either sign, as in retention (Sun et al. 2023, 2307.08621)."""
    return x


def hedgehog(x: Tensor, weight: Tensor) -> Tensor:
    """[softmax(x W^T), softmax(-x W^T)]: positive and spiky, learned a head.

    Args:
        x: (..., h, k) queries or keys.
        weight: (h, r, k) one matrix a head; the identity is the published start (r = k).

    Returns:
        (..., h, 2 r) features, each half a distribution.

    Source: Zhang et al. 2024 (arXiv 2402.04347), sec. 4.2, in its softmax-stabilised form.
    """
    if weight.ndim != 3 or x.ndim < 2 or weight.shape[0] != x.shape[-2] or weight.shape[2] != x.shape[-1]:
        raise ValueError(
            f"hedgehog: weight must be (h, r, k) for x (..., h, k), got {tuple(weight.shape)} for {tuple(x.shape)}"
        )
    scores = torch.einsum("...hk,hrk->...hr", x, weight)
    return torch.cat([scores.softmax(-1), (-scores).softmax(-1)], dim=-1)


FEATURE_MAPS = {"elu": elu_plus_one, "relu_squared": relu_squared, "identity": identity}
