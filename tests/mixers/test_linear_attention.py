"""LinearAttention against the equations of the papers it covers, in their quadratic form."""

import pytest
import torch

from subquad.mixers import LinearAttention

from .test_attention import turned
from .variants import ROTATED, tokens


def projections(mixer, x):
    return (part.unflatten(-1, (mixer.num_heads, -1)) for part in (x @ mixer.qkv_proj.weight.T).chunk(3, dim=-1))


def read(mixer, weights, v):
    """(b, h, t, s) weights on (b, s, h, v) values, then the output projection."""
    return torch.einsum("bhts, bshv -> bthv", weights, v).flatten(-2) @ mixer.out_proj.weight.T


def hedgehog(x, weight):
    logits = torch.stack([x[:, :, i] @ weight[i].T for i in range(x.shape[2])], dim=2)
    parts = [torch.exp(s) / torch.exp(s).sum(-1, keepdim=True) for s in (logits, -logits)]
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("feature_map", ["elu", "relu2", "hedgehog"])
def test_linear_attention_is_normalised_products_of_features(feature_map):
    mixer, x = LinearAttention(16, num_heads=2, feature_map=feature_map, dtype=torch.float64), tokens()
    if feature_map == "hedgehog":
        for weight in (mixer.q_map.weight, mixer.k_map.weight):
            torch.nn.init.normal_(weight)
    q, k, v = projections(mixer, x)
    q, k = {
        "elu": lambda: (torch.where(z > 0, z + 1, z.exp()) for z in (q, k)),
        "relu2": lambda: (z.clamp(min=0) ** 2 for z in (q, k)),
        "hedgehog": lambda: (hedgehog(q, mixer.q_map.weight), hedgehog(k, mixer.k_map.weight)),
    }[feature_map]()
    weights = torch.einsum("bthk, bshk -> bhts", q, k).tril()
    total = weights.sum(-1, keepdim=True)
    weights = torch.where(total > 0, weights / total, 0.0)
    torch.testing.assert_close(mixer(x), read(mixer, weights, v), rtol=1e-6, atol=1e-9)


def test_rotary_positions_and_the_norm_of_heads():
    mixer, x = LinearAttention(16, **ROTATED, dtype=torch.float64), tokens()
    torch.nn.init.normal_(mixer.norm.weight)
    q, k, v = projections(mixer, x)
    weights = (torch.einsum("bthk, bshk -> bhts", turned(q, 10_000.0), turned(k, 10_000.0)) / 4**0.5).tril()
    heads = torch.einsum("bhts, bshv -> bthv", weights, v)
    heads = heads / (heads.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x), heads.flatten(-2) @ mixer.out_proj.weight.T)


def test_without_norm_it_is_a_plain_sum():
    mixer = LinearAttention(16, num_heads=1, feature_map="identity", normalize=None, dtype=torch.float64)
    x = tokens()
    q, k, v = projections(mixer, x)
    weights = torch.einsum("bthk, bshk -> bhts", q, k).tril() / 4
    torch.testing.assert_close(mixer(x), read(mixer, weights, v))


def test_initial_values():
    hedgehog = LinearAttention(16, feature_map="hedgehog")
    assert torch.equal(hedgehog.q_map.weight, torch.eye(4).expand(4, 4, 4))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_heads=5), "num_heads must divide d_model"),
        (dict(feature_map="relu"), "unknown feature_map 'relu'; expected one of elu, relu2, identity, hedgehog"),
        (dict(normalize=True), "unknown normalize True; expected one of None, 'sum', 'head'"),
        (dict(feature_map="identity"), "normalize='sum' divides by the summed weights"),
        (dict(rotary_base=10.0), "normalize='sum' divides by the summed weights"),
        (dict(num_heads=16, normalize=None, rotary_base=10.0), "heads must be even, got head_dim=1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LinearAttention(16, **options)
