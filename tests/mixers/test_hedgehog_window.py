"""HedgehogWindow is its equation, and softmax where the window sees all."""

import pytest
import torch

from subquad.kernels.feature_maps import hedgehog
from subquad.mixers import Attention, HedgehogWindow

from .variants import tokens


def averaged(mixer, q, k, v):
    """Zhang et al. 2024, eq. 6, key by key."""
    t, window, groups = q.shape[1], mixer.window, q.shape[2] // k.shape[2]
    features = hedgehog(q, mixer.q_map.weight), hedgehog(k, mixer.k_map.weight).repeat_interleave(groups, 2)
    k, v = (x.repeat_interleave(groups, 2) for x in (k, v))
    distance = torch.arange(t)[:, None] - torch.arange(t)
    sink = torch.arange(t) < mixer.sinks
    near = (distance >= 0) & ((distance < window) | sink)
    far = (distance >= window) & ~sink
    scores = torch.einsum("bthk, bshk -> bhts", q, k) / q.shape[-1] ** 0.5
    peak = scores.masked_fill(~near, -torch.inf).amax(-1, keepdim=True)
    share = torch.sigmoid(mixer.window_logit)[..., None]  # (h, 1, 1)
    weights = share * (scores - peak).exp() * near + torch.einsum("bthr, bshr -> bhts", *features) * far
    return torch.einsum("bhts, bshv -> bthv", weights / weights.sum(-1, keepdim=True), v)


@pytest.mark.parametrize("t", [1, 4, 5, 6, 23])
@pytest.mark.parametrize("window, sinks", [(1, 0), (5, 0), (1, 2), (5, 3)])
def test_it_is_the_published_average(t, window, sinks):
    options = dict(window=window, sinks=sinks, num_kv_heads=2, rotary_base=None)
    mixer, x = HedgehogWindow(16, **options, dtype=torch.float64), tokens(t=t)
    for parameter in (mixer.q_map.weight, mixer.k_map.weight, mixer.window_logit):
        torch.nn.init.normal_(parameter)
    q, k, v = (x @ mixer.qkv_proj.weight.T).unflatten(-1, (-1, 4)).split((4, 2, 2), dim=-2)
    expected = averaged(mixer, q, k, v).flatten(-2) @ mixer.out_proj.weight.T
    torch.testing.assert_close(mixer(x), expected)


def test_a_window_that_sees_all_is_softmax():
    mixer, x = HedgehogWindow(16, window=32, dtype=torch.float64), tokens()
    softmax = Attention(16, dtype=torch.float64)
    softmax.qkv_proj, softmax.out_proj = mixer.qkv_proj, mixer.out_proj
    torch.testing.assert_close(mixer(x), softmax(x))


def test_it_starts_as_published():
    mixer = HedgehogWindow(16)
    assert torch.equal(mixer.q_map.weight, torch.eye(4).expand(4, 4, 4))
    torch.testing.assert_close(mixer.window_logit.sigmoid(), torch.full((4, 1), 0.1), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(window=0), "window counts the token itself"),
        (dict(sinks=-1), "sinks must not be negative, got -1"),
        (dict(num_kv_heads=3), "num_kv_heads must divide num_heads"),
        (dict(num_heads=5), "num_heads must divide d_model"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HedgehogWindow(16, **options)
