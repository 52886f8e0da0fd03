"""The delta-rule mixers against the recurrences of their papers, and what these promise."""

import pytest
import torch
import torch.nn.functional as F

from subquad.kernels.delta_rule import delta_rule
from subquad.mixers import DeltaNet, GatedDeltaNet, KimiDelta

from .variants import tokens


def convolved(mixer, x):
    """q, k and v (b, t, h, k) after the short convolution and silu."""
    z, weight = x @ mixer.qkv_proj.weight.T, mixer.conv.weight
    past = F.pad(z, (0, 0, weight.shape[1] - 1, 0))
    z = sum(past[:, tap : tap + z.shape[1]] * weight[:, tap] for tap in range(weight.shape[1]))
    z = z * torch.sigmoid(z)
    return [part.unflatten(-1, (mixer.num_heads, -1)) for part in z.split(mixer.widths, dim=-1)]


def unit(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def remembered(mixer, x, decay):
    """S_t = (I - beta k k^T) diag(decay) S_{t-1} + beta k v^T, o_t = S_t^T q / sqrt(k), token by token."""
    q, k, v = convolved(mixer, x)
    q, k = unit(q) / q.shape[-1] ** 0.5, unit(k)
    beta = torch.sigmoid(x @ mixer.beta_proj.weight.T) * mixer.beta_scale
    memory = x.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1])
    identity = torch.eye(q.shape[-1], dtype=x.dtype)
    ys = []
    for t in range(x.shape[1]):
        kt, bt = k[:, t, :, :, None], beta[:, t, :, None, None]
        memory = (identity - bt * kt @ kt.mT) @ (decay[:, t] * memory) + bt * kt @ v[:, t, :, None, :]
        ys.append((memory.mT @ q[:, t, :, :, None]).squeeze(-1))
    return torch.stack(ys, dim=1)


def normed(mixer, y):
    return (y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight).flatten(-2)


@pytest.mark.parametrize("negative", [False, True])
def test_delta_net(negative):
    mixer, x = DeltaNet(16, num_heads=2, negative_eigenvalues=negative, dtype=torch.float64), tokens()
    y = remembered(mixer, x, torch.ones(2, 13, 1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(mixer(x), normed(mixer, y) @ mixer.out_proj.weight.T)


def test_gated_delta_net():
    mixer, x = GatedDeltaNet(16, num_heads=2, dtype=torch.float64), tokens()
    steps = torch.log1p(torch.exp(x @ mixer.decay_proj.weight.T + mixer.decay.dt_bias[:, 0]))
    decay = torch.exp(-mixer.decay.A_log[:, 0].exp() * steps)[..., None, None]
    gate = x @ mixer.gate_proj.weight.T
    y = normed(mixer, remembered(mixer, x, decay)) * gate * torch.sigmoid(gate)
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T)


def test_kimi_delta():
    mixer, x = KimiDelta(16, num_heads=2, dtype=torch.float64), tokens()
    raw = (x @ mixer.decay_proj[0].weight.T @ mixer.decay_proj[1].weight.T).unflatten(-1, (2, 8))
    decay = torch.exp(-mixer.decay.A_log.exp() * torch.log1p(torch.exp(raw + mixer.decay.dt_bias)))[..., None]
    gate = x @ mixer.gate_proj[0].weight.T @ mixer.gate_proj[1].weight.T + mixer.gate_proj[1].bias
    y = normed(mixer, remembered(mixer, x, decay)) * torch.sigmoid(gate)
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T)


def test_orthonormal_keys_store_exactly():
    """What was written last under a key is read back, whatever was written before and under the other keys."""
    order = [0, 1, 2, 3, 1, 0, 3, 2, 1]
    keys = torch.eye(4, dtype=torch.float64)[order][None, :, None]
    values = torch.randn(1, 9, 1, 3, dtype=torch.float64)
    _, state = delta_rule(keys, keys, values, torch.ones(1, 9, 1, dtype=torch.float64), backend="torch")
    for key in range(4):
        last = max(t for t, written in enumerate(order) if written == key)
        torch.testing.assert_close(state[0, 0, key], values[0, last, 0])


def test_decays_and_steps_begin_where_they_are_published():
    torch.manual_seed(0)
    gated, kimi = GatedDeltaNet(256, num_heads=64).decay, KimiDelta(256, num_heads=8).decay
    for decay in (gated, kimi):
        assert decay.A_log.exp().min() > 0 and 8 < decay.A_log.exp().max() <= 16
        steps = F.softplus(decay.dt_bias)
        assert steps.min() >= 1e-3 * 0.99 and steps.max() <= 0.1 * 1.01
        assert 0.005 < steps.log().mean().exp() < 0.02  # log-uniform: the geometric mean is 0.01
