"""S4D and H3 against their state spaces, walked token by token in complex float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from subquad.kernels.long_conv import long_conv
from subquad.mixers import H3, S4D, State

from .variants import tokens


def walked(space, D, x):
    """h_t = exp(dt A) h_{t-1} + (exp(dt A) - 1) / A x_t, y_t = 2 Re(C h_t) + D x_t."""
    A = torch.complex(-space.A_real_log.exp(), space.A_imag)
    decay = torch.exp(space.log_dt.exp()[:, None] * A)
    C = torch.complex(space.C[..., 0], space.C[..., 1])
    h, ys = torch.zeros(x.shape[0], *A.shape, dtype=torch.complex128), []
    for t in range(x.shape[1]):
        h = decay * h + (decay - 1) / A * x[:, t, :, None]
        ys.append(2 * (C * h).sum(-1).real + D * x[:, t])
    return torch.stack(ys, dim=1)


def test_s4d():
    mixer, x = S4D(16, d_state=6, dtype=torch.float64), tokens()
    z = F.gelu(walked(mixer.space, mixer.D, x)) @ mixer.out_proj.weight.T + mixer.out_proj.bias
    value, gate = z.chunk(2, dim=-1)
    torch.testing.assert_close(mixer(x), value * torch.sigmoid(gate))


def test_s4d_is_a_long_convolution_with_its_filter():
    mixer, x = S4D(16, d_state=6, dtype=torch.float64), tokens(t=30)
    impulse = torch.zeros(1, 30, 16, dtype=torch.float64)
    impulse[:, 0] = 1
    filter = walked(mixer.space, torch.zeros(16, dtype=torch.float64), impulse)[0].T  # materialised: (d, t)
    y, _ = mixer.mix(mixer.project(x, None, 0)[0], None)
    torch.testing.assert_close(y, long_conv(x, filter, mixer.D, backend="reference"))


def shift_space(weight, k):
    """h_t = S h_{t-1} + e_0 k_t, y_t = C h_t: S moves every state one place on."""
    width = weight.shape[1]
    move = torch.diag(torch.ones(width - 1, dtype=k.dtype), -1)
    first = torch.eye(width, dtype=k.dtype)[0]
    h, ys = k.new_zeros(*k[:, 0].shape, width), []
    for t in range(k.shape[1]):
        h = h @ move.T + k[:, t, :, None] * first
        ys.append((h * weight.flip(1)).sum(-1))  # the last tap of a filter meets the newest token
    return torch.stack(ys, dim=1)


@pytest.mark.parametrize("shift", [1, 4])
def test_h3(shift):
    """Fu et al. 2022, alg. 1; the shift space is a short convolution."""
    mixer, x = H3(16, d_state=6, shift=shift, dtype=torch.float64), tokens()
    q, k, v = (x @ mixer.qkv_proj.weight.T + mixer.qkv_proj.bias).chunk(3, dim=-1)
    y = q * walked(mixer.space, mixer.D, shift_space(mixer.conv.weight, k) * v)
    torch.testing.assert_close(mixer(x), y @ mixer.out_proj.weight.T + mixer.out_proj.bias)


def test_states_after_many_tokens_are_those_of_the_walk():
    """Longer than one run of tokens, and gone on from."""
    mixer, x = S4D(16, d_state=4, dtype=torch.float64), tokens(t=600)
    with torch.no_grad():
        whole = mixer(x)
        _, state = mixer.run(x[:, :500], State())
        y, _ = mixer.run(x[:, 500:], state)
    torch.testing.assert_close(y, whole[:, 500:])
    assert state.memory.shape == (2, 16, 2, 2)


def test_states_begin_as_published():
    torch.manual_seed(0)
    space = S4D(256, d_state=8).space
    assert torch.allclose(-space.A_real_log.exp(), torch.full((256, 4), -0.5))
    assert torch.allclose(space.A_imag, math.pi * torch.arange(4.0).expand(256, 4))
    steps = space.log_dt.exp()
    assert steps.min() >= 1e-3 * 0.99 and steps.max() <= 0.1 * 1.01
    assert abs(space.C.var() - 0.5) < 0.05  # of each part of a complex normal
    with pytest.raises(ValueError, match="d_state must be even, for states come in conjugate pairs, got 5"):
        S4D(16, d_state=5)
