"""Based and ReBased against the feature maps of their papers, expanded in full."""

import pytest
import torch

from subquad.mixers import Based, ReBased

from .variants import tokens


def taylor(x):
    """[1, x / d^(1/4), vec(x x^T) / sqrt(2 d)]: its products are 1 + s + s^2 / 2 with s = q . k / sqrt(d)."""
    d = x.shape[-1]
    square = (x[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat([torch.ones_like(x[..., :1]), x / d**0.25, square / (2 * d) ** 0.5], dim=-1)


def attend(phi_q, phi_k, v):
    weights = torch.einsum("bthr, bshr -> bhts", phi_q, phi_k).tril()
    return torch.einsum("bhts, bshv -> bthv", weights / (weights.sum(-1, keepdim=True) + 1e-12), v).flatten(-2)


def projections(mixer, x):
    h, f = mixer.num_heads, mixer.widths[0] // mixer.num_heads
    q, k, v = (x @ mixer.qkv_proj.weight.T).split([h * f, h * f, mixer.d_model], dim=-1)
    return q, k, v.unflatten(-1, (h, -1))


@pytest.mark.parametrize("num_heads, feature_dim", [(1, 16), (4, 3)])
def test_based_is_the_taylor_expansion(num_heads, feature_dim):
    mixer, x = Based(16, num_heads=num_heads, feature_dim=feature_dim, dtype=torch.float64), tokens()
    q, k, v = projections(mixer, 3 * x)
    q, k = (z.unflatten(-1, (num_heads, -1)) for z in (q, k))
    y = attend(taylor(q), taylor(k), v) @ mixer.out_proj.weight.T
    torch.testing.assert_close(mixer(3 * x), y)


@pytest.mark.parametrize("num_heads, feature_dim", [(1, 16), (4, 3)])
def test_rebased_is_the_normalised_square(num_heads, feature_dim):
    mixer, x = ReBased(16, num_heads=num_heads, feature_dim=feature_dim, dtype=torch.float64), tokens()
    for parameter in (*mixer.q_norm.parameters(), *mixer.k_norm.parameters()):
        torch.nn.init.normal_(parameter)
    q, k, v = projections(mixer, x)
    maps = []
    for z, norm in ((q, mixer.q_norm), (k, mixer.k_norm)):
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        z = (norm.weight * z + norm.bias).unflatten(-1, (num_heads, -1)) / feature_dim**0.25
        maps.append((z[..., :, None] * z[..., None, :]).flatten(-2))
    torch.testing.assert_close(mixer(x), attend(*maps, v) @ mixer.out_proj.weight.T)


@pytest.mark.parametrize("mixer, rows", [(Based, 1 + 16 + 136), (ReBased, 136)])
def test_the_state_is_the_symmetric_expansion(mixer, rows):
    """Per head: rows of features times the head's values and one normaliser."""
    assert mixer(64, num_heads=2, feature_dim=16).state_size(100) == 2 * rows * (32 + 1) * 4


def test_rebased_starts_from_the_plain_norm():
    mixer = ReBased(16)
    assert torch.equal(mixer.q_norm.weight, torch.ones(64)) and torch.equal(mixer.k_norm.bias, torch.zeros(64))


@pytest.mark.parametrize("mixer", [Based, ReBased])
def test_bad_options_are_refused(mixer):
    with pytest.raises(ValueError, match=f"{mixer.__name__}: num_heads must divide d_model"):
        mixer(16, num_heads=3)
    with pytest.raises(ValueError, match=f"{mixer.__name__}: feature_dim must be at least 1, got 0"):
        mixer(16, feature_dim=0)
