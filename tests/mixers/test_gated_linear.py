"""The mixers on linear attention that gate it, against the recurrences of their papers, token by token."""

import pytest
import torch

from subquad.mixers import GLA, HGRN2, MLSTM, Retention, State

from .test_attention import turned
from .variants import tokens


def silu(x):
    return x * torch.sigmoid(x)


def remembered(q, k, v, decay):
    """S_t = diag(decay_t) S_{t-1} + k_t v_t^T, y_t = q_t S_t."""
    memory, ys = q.new_zeros(*k[:, 0].shape, v.shape[-1]), []
    for t in range(q.shape[1]):
        memory = decay[:, t, :, :, None] * memory + k[:, t, :, :, None] * v[:, t, :, None]
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, t], memory))
    return torch.stack(ys, dim=1)


def normed(mixer, y):
    return (y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight).flatten(-2)


def test_gla():
    mixer, x = GLA(16, num_heads=2, dtype=torch.float64), tokens()
    q, k, v = (z.unflatten(-1, (2, -1)) for z in (x @ mixer.qkv_proj.weight.T).split((8, 8, 16), dim=-1))
    raw = x @ mixer.decay_proj[0].weight.T @ mixer.decay_proj[1].weight.T + mixer.decay_proj[1].bias
    decay = torch.sigmoid(raw).pow(1 / 16).unflatten(-1, (2, -1))
    y = normed(mixer, remembered(q / 2, k, v, decay)) * silu(x @ mixer.gate_proj.weight.T)
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T)


@pytest.mark.parametrize("lower_bound", [0.0, 0.4])
def test_hgrn2(lower_bound):
    mixer, x = HGRN2(16, num_heads=2, lower_bound=lower_bound, dtype=torch.float64), tokens()
    q, f, v = (z.unflatten(-1, (2, -1)) for z in (x @ mixer.qfv_proj.weight.T).chunk(3, dim=-1))
    decay = lower_bound + (1 - lower_bound) * torch.sigmoid(f)
    y = normed(mixer, remembered(silu(q), 1 - decay, v, decay))
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T)


def test_retention():
    mixer, x = Retention(16, num_heads=2, dtype=torch.float64), tokens()
    q, k, v = (z.unflatten(-1, (2, -1)) for z in (x @ mixer.qkv_proj.weight.T).chunk(3, dim=-1))
    decay = (1 - 2.0 ** (-5 - torch.arange(2).double()))[:, None].expand(2, 13, 2, 8)
    q, k = turned(q, 10_000.0) / 8**0.5, turned(k, 10_000.0)
    y = normed(mixer, remembered(q, k, v, decay)) * silu(x @ mixer.gate_proj.weight.T)
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T)


def test_initial_values_of_retention():
    mixer = Retention(64)
    bound = 2**-2.5 * (6 / 128) ** 0.5
    for weight in mixer.qkv_proj.weight.chunk(3):
        assert 0.95 * bound < weight.abs().max() <= bound
    assert 0.95 * (6 / 128) ** 0.5 < mixer.out_proj.weight.abs().max() <= (6 / 128) ** 0.5


def mlstm_gates(mixer, x):
    gates = 15 * torch.tanh((x @ mixer.gates_proj.weight.T + mixer.gates_proj.bias) / 15)
    return gates.chunk(2, dim=-1)  # log i, and f before its sigmoid


def test_mlstm():
    """Beck et al. 2024, eq. 19-23, with the gates as they are: small enough for float64 here."""
    mixer, x = MLSTM(16, num_heads=2, dtype=torch.float64), tokens()
    torch.nn.init.normal_(mixer.gates_proj.weight)
    torch.nn.init.normal_(mixer.gates_proj.bias)
    q, k, v = (z.unflatten(-1, (2, -1)) for z in (x @ mixer.qkv_proj.weight.T).chunk(3, dim=-1))
    log_input, forget = mlstm_gates(mixer, x)
    decay = torch.sigmoid(forget)[..., None].expand_as(k)
    keys = k * log_input.exp()[..., None]
    num = remembered(q / 8**0.5, keys, v, decay)
    den = remembered(q / 8**0.5, keys, torch.ones_like(v[..., :1]), decay)
    y = normed(mixer, num / den.abs().clamp_min(1)) * torch.sigmoid(x @ mixer.gate_proj.weight.T)
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T)


def test_mlstm_takes_gates_that_no_float_holds():
    """log i and log f of hundreds: the memory is kept relative to the running maximum."""
    mixer, x = MLSTM(16, num_heads=2, dtype=torch.float32), tokens(t=200, dtype=torch.float32)
    inputs, _ = mixer.project(x, None, 0)
    inputs["log_input"] = 200 * torch.randn(2, 200, 2)
    inputs["log_forget"] = -100 * torch.rand(2, 200, 2)
    y, memory = mixer.mix(inputs, None)
    assert torch.isfinite(y).all() and torch.isfinite(memory.memory).all()
    wide = {name: z.double() for name, z in inputs.items()}
    torch.testing.assert_close(y.double(), mixer.mix(wide, None)[0], rtol=1e-3, atol=1e-4)


def test_mlstm_begins_with_closed_input_gates_and_long_memories():
    mixer = MLSTM(64, num_heads=4)
    assert torch.equal(mixer.gates_proj.bias, torch.tensor([-10.0] * 4 + [3.0, 4.0, 5.0, 6.0]))
    assert mixer.run(torch.randn(1, 3, 64), State())[1].memory.log_scale.shape == (1, 4)
