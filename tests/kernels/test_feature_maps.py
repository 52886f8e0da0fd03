"""Laws of the feature maps."""

import pytest
import torch
from torch.testing import assert_close

from subquad.kernels.feature_maps import FEATURE_MAPS, hedgehog


@pytest.fixture
def x():
    return torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)


def test_definitions(x):
    expected = {
        "elu": torch.where(x > 0, x + 1, x.exp()),
        "relu_squared": x.clamp(min=0) ** 2,
        "identity": x,
    }
    assert expected.keys() == FEATURE_MAPS.keys()
    for name, phi in FEATURE_MAPS.items():
        assert_close(phi(x), expected[name])


@pytest.mark.parametrize("name", ["elu", "relu_squared"])
def test_weights_are_not_negative(name, x):
    features = FEATURE_MAPS[name](10 * x)
    assert (features >= 0).all()


def test_hedgehog_is_two_distributions_a_head(x):
    weight = torch.randn(3, 6, 8, dtype=torch.float64)
    features = hedgehog(x, weight)
    assert features.shape == (2, 5, 3, 12)
    assert_close(features[..., :6].sum(-1), torch.ones(2, 5, 3, dtype=torch.float64))
    for head in range(3):
        projected = (x[:, :, head] @ weight[head].T).exp()
        assert_close(features[:, :, head, :6], projected / projected.sum(-1, keepdim=True))
        assert_close(features[:, :, head, 6:], (1 / projected) / (1 / projected).sum(-1, keepdim=True))


def test_hedgehog_survives_large_inputs(x):
    features = hedgehog(1e4 * x, torch.eye(8, dtype=torch.float64).expand(3, 8, 8))
    assert torch.isfinite(features).all()


def test_hedgehog_gradients(x):
    weight = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(hedgehog, (x, weight))


def test_hedgehog_refuses_a_weight_that_does_not_fit(x):
    with pytest.raises(ValueError, match=r"weight must be \(h, r, k\) for x \(\.\.\., h, k\), got \(2, 8, 8\)"):
        hedgehog(x, torch.zeros(2, 8, 8, dtype=torch.float64))
