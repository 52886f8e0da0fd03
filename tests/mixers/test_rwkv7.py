"""RWKV-7's time mixing against its paper's recurrence, and where its parameters begin."""

import math

import pytest
import torch

from subquad.mixers import RWKV7

from .variants import tokens


def shifted(mixer, x):
    """The six mixtures of each token with the one before it."""
    if mixer.shift is None:
        return [x] * 6
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    return [x * (1 - mu) + before * mu for mu in mixer.shift]


def low_rank(module, x, activation=lambda x: x):
    y = activation(x @ module.down.T) @ module.up.T
    return y if module.bias is None else y + module.bias


@pytest.mark.parametrize("token_shift", [True, False])
def test_rwkv7(token_shift):
    """S_t = S_{t-1} (diag(w_t) - key^T (rate * key)) + v^T k', (v, k) as in the paper; o_t = S_t r_t."""
    mixer, x = RWKV7(16, num_heads=2, rank=4, token_shift=token_shift, dtype=torch.float64), tokens()
    with torch.no_grad():
        for parameter in mixer.parameters():  # none where it starts, some of these are zero
            parameter.add_(0.3 * torch.randn_like(parameter))

    def heads(z):
        return z.unflatten(-1, (2, 8))

    xr, xw, xk, xv, xa, xg = shifted(mixer, x)
    r, k, v = (heads(z @ p.weight.T) for z, p in ((xr, mixer.r_proj), (xk, mixer.k_proj), (xv, mixer.v_proj)))
    w = torch.exp(-math.exp(-0.5) * torch.sigmoid(heads(low_rank(mixer.decay, xw, torch.tanh))))
    rate = torch.sigmoid(heads(low_rank(mixer.rate, xa)))
    key = k * heads(mixer.key_scale)
    key = key / key.square().sum(-1, keepdim=True).sqrt()
    k = k * (1 + (rate - 1) * heads(mixer.key_share))
    memory, ys = x.new_zeros(2, 2, 8, 8), []
    for t in range(x.shape[1]):
        transition = torch.diag_embed(w[:, t]) - key[:, t, :, :, None] * (rate * key)[:, t, :, None]
        memory = memory @ transition + v[:, t, :, :, None] * k[:, t, :, None]
        ys.append((memory @ r[:, t, :, :, None]).squeeze(-1))
    y = torch.stack(ys, dim=1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 8e-5).sqrt()
    y = y * heads(mixer.norm.weight) + heads(mixer.norm.bias) + (r * k * mixer.bonus).sum(-1, keepdim=True) * v
    gate = low_rank(mixer.gate, xg, torch.sigmoid)
    torch.testing.assert_close(mixer(x), (y.flatten(-2) * gate) @ mixer.out_proj.weight.T)


def test_parameters_begin_where_they_are_published():
    mixer = RWKV7(256, num_heads=4)
    assert [tuple(module.down.shape) for module in (mixer.decay, mixer.rate, mixer.gate)] == [
        (32, 256), (32, 256), (64, 256)
    ]  # fmt: skip
    assert RWKV7(2048, num_heads=32).decay.down.shape[0] == 128
    assert all(not module.down.any() for module in (mixer.decay, mixer.rate, mixer.gate))
    assert torch.allclose(mixer.decay.up.T @ mixer.decay.up, 0.01 * torch.eye(32), atol=1e-6)
    # Decay: a channel keeps exp(-0.607 sigmoid(b)), b from -8 at the first channel to 3 at the last.
    assert mixer.decay.bias[0] == -8 and mixer.decay.bias[-1] == 3
    assert -0.19 - 0.3 - 0.2 - 1e-6 <= mixer.rate.bias.min() < -0.6 and 0.2 < mixer.rate.bias.max() < 0.32
    assert mixer.key_scale.min() > 0.65 and mixer.key_scale.max() < 0.77
    assert torch.all(mixer.key_share == 1.02) and torch.all(mixer.bonus == -0.04)
    assert torch.allclose(mixer.shift[:, 0], torch.ones(6)) and mixer.shift[:, -1].max() < 0.01
    assert mixer.shift[1, 128].item() == pytest.approx(1 - 0.5**0.9)


def test_heads_of_one_channel_are_refused():
    with pytest.raises(ValueError, match="num_heads=16 leaves 1"):
        RWKV7(16, num_heads=16)
