"""Mamba and Mamba-2 against the recurrences of their papers, token by token."""

import pytest
import torch
import torch.nn.functional as F

from subquad.mixers import Mamba, Mamba2

from .variants import tokens


def silu(x):
    return x * torch.sigmoid(x)


def convolved(conv, z):
    if conv.weight is None:
        return silu(z)
    past = F.pad(z, (0, 0, conv.weight.shape[1] - 1, 0))
    taps = range(conv.weight.shape[1])
    return silu(sum(past[:, tap : tap + z.shape[1]] * conv.weight[:, tap] for tap in taps) + conv.bias)


@pytest.mark.parametrize("conv_width", [4, None])
def test_mamba(conv_width):
    """Gu & Dao 2023, eq. 2a with A discretised by zero-order hold and B by Euler's rule."""
    mixer, x = Mamba(16, d_state=4, conv_width=conv_width, dtype=torch.float64), tokens()
    torch.nn.init.normal_(mixer.D)
    u = convolved(mixer.conv, x @ mixer.in_proj.weight.T)
    raw, B, C = (u @ mixer.x_proj.weight.T).split(mixer.widths, dim=-1)
    dt = torch.log1p(torch.exp(raw @ mixer.dt_proj.weight.T + mixer.dt_proj.bias))
    h, ys = x.new_zeros(2, 32, 4), []
    for t in range(13):
        h = torch.exp(-dt[:, t, :, None] * mixer.A_log.exp()) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h @ C[:, t, :, None]).squeeze(-1) + mixer.D * u[:, t])
    y = torch.stack(ys, dim=1) * silu(x @ mixer.gate_proj.weight.T)
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T)


def test_mamba2():
    """Dao & Gu 2024, sec. 7: the same with one rate a head, and B and C for all heads."""
    mixer, x = Mamba2(16, num_heads=2, d_state=6, dtype=torch.float64), tokens()
    torch.nn.init.normal_(mixer.D)
    v, B, C = convolved(mixer.conv, x @ mixer.in_proj.weight.T).split(mixer.widths, dim=-1)
    v = v.unflatten(-1, (2, 16))
    dt = torch.log1p(torch.exp(x @ mixer.dt_proj.weight.T + mixer.decay.dt_bias[:, 0]))  # (b, t, h)
    h, ys = x.new_zeros(2, 2, 16, 6), []
    for t in range(13):
        decay = torch.exp(-dt[:, t] * mixer.decay.A_log[:, 0].exp())[..., None, None]
        h = decay * h + dt[:, t, :, None, None] * v[:, t, :, :, None] * B[:, t, None, None]
        ys.append((h @ C[:, t, None, :, None]).squeeze(-1) + mixer.D * v[:, t])
    y = torch.stack(ys, dim=1).flatten(-2) * silu(x @ mixer.gate_proj.weight.T)
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T)


def test_rates_and_steps_begin_where_they_are_published():
    torch.manual_seed(0)
    mamba = Mamba(64)
    assert torch.allclose(mamba.A_log.exp(), torch.arange(1.0, 17.0).expand(128, 16))
    assert torch.equal(mamba.D, torch.ones(128))
    assert mamba.dt_proj.weight.abs().max() <= 4**-0.5  # a rank of 64 / 16
    rates = Mamba2(64, num_heads=32).decay.A_log.exp()
    assert 1 <= rates.min() < 4 and 12 < rates.max() <= 16
    for bias in (mamba.dt_proj.bias, Mamba2(64, num_heads=32).decay.dt_bias):
        steps = F.softplus(bias)
        assert steps.min() >= 1e-3 * 0.99 and steps.max() <= 0.1 * 1.01
        assert 0.004 < steps.log().mean().exp() < 0.025  # log-uniform: the geometric mean is 0.01
