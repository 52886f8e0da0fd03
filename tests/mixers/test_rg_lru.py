"""RG-LRU against the paper's equations, and its gates at both ends."""

import torch
import torch.nn.functional as F

from subquad.mixers import RGLRU

from .variants import tokens


def test_rg_lru():
    """De et al. 2024, eq. 1-4, token by token."""
    mixer, x = RGLRU(16, num_heads=2, dtype=torch.float64), tokens()
    z = x @ mixer.in_proj.weight.T + mixer.in_proj.bias
    past = F.pad(z, (0, 0, 3, 0))
    u = sum(past[:, tap : tap + 13] * mixer.conv.weight[:, tap] for tap in range(4)) + mixer.conv.bias
    blocks = [torch.block_diag(*weight) for weight in mixer.gates_weight]
    read, enter = (torch.sigmoid(u @ w + bias.flatten()) for w, bias in zip(blocks, mixer.gates_bias, strict=True))
    decay = torch.sigmoid(-mixer.decay_logit) ** (8 * read)  # a = sigmoid(-lambda) = exp(-softplus(lambda))
    h, ys = x.new_zeros(2, 16), []
    for t in range(13):
        h = decay[:, t] * h + (1 - decay[:, t] ** 2).sqrt() * enter[:, t] * u[:, t]
        ys.append(h)
    gate = x @ mixer.gate_proj.weight.T + mixer.gate_proj.bias
    y = torch.stack(ys, dim=1) * F.gelu(gate, approximate="tanh")
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T + mixer.out_proj.bias)


def with_gate(bias: float) -> tuple[RGLRU, dict]:
    """r = sigmoid(bias) everywhere."""
    mixer = RGLRU(16, dtype=torch.float64)
    with torch.no_grad():
        mixer.gates_weight[0].zero_()
        mixer.gates_bias[0].fill_(bias)
    return mixer, mixer.project(tokens(), None, 0)[0]


def test_a_closed_gate_keeps_all_and_takes_nothing():
    mixer, inputs = with_gate(-1000.0)
    assert torch.equal(inputs["log_decay"], torch.zeros_like(inputs["log_decay"]))
    state = torch.randn(2, 16, dtype=torch.float64)
    y, after = mixer.mix(inputs, state)
    torch.testing.assert_close(after, state, rtol=0, atol=1e-4)
    torch.testing.assert_close(y, state[:, None].expand_as(y), rtol=0, atol=1e-4)
    mixer(tokens()).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters())


def test_an_open_gate_fades_as_fast_as_it_can():
    mixer, inputs = with_gate(1000.0)
    fastest = -8 * F.softplus(mixer.decay_logit)
    torch.testing.assert_close(inputs["log_decay"], fastest.expand_as(inputs["log_decay"]))


def test_decays_begin_where_they_are_published():
    torch.manual_seed(0)
    decay = torch.exp(-8 * F.softplus(RGLRU(512).decay_logit))
    assert 0.9 * 0.9999 <= decay.min() < 0.91 and 0.99 < decay.max() <= 0.999 * 1.0001
    squared = decay.square()
    assert abs(squared.mean() - (0.9**2 + 0.999**2) / 2) < 0.01  # uniform
