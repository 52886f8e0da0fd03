"""Hyena against its equation: the filter from complex exponentials, the convolution tap by tap."""

import math

import pytest
import torch

from subquad.mixers import Hyena, State
from subquad.mixers._long_filter import ImplicitFilter, toeplitz

from .test_base_conv import convolved
from .variants import tokens


def published_filter(network, t):
    """Positional features as complex exponentials, a network of sines, an exponential window (arXiv 2302.10866)."""
    length, bands, d = network.max_length, network.num_bands, network.channels
    time = torch.linspace(0, 1, length, dtype=torch.float64)[:t, None]
    omega = 2 * math.pi * torch.arange(length).double()[:t, None] / length
    z = torch.exp(-1j * torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64) * omega)
    y = torch.cat([time, z.real, z.imag], dim=1)
    for layer in network.hidden:
        y = torch.sin(network.frequency * layer(y))
    deltas = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, d, dtype=torch.float64)
    return (network.out_proj(y) * torch.exp(-time * deltas.abs())).T


@pytest.mark.parametrize("num_bands", [1, 4])
def test_the_filter_is_the_published_one(num_bands):
    network = ImplicitFilter(16, 30, num_bands=num_bands, hidden_dim=8, frequency=3.0, dtype=torch.float64)
    torch.nn.init.uniform_(network.frequency, 1, 5)
    torch.testing.assert_close(network(30), published_filter(network, 30))
    torch.testing.assert_close(network(7), published_filter(network, 30)[:, :7])


@pytest.mark.parametrize("conv_width", [None, 3])
def test_hyena_is_a_convolution_between_two_gates(conv_width):
    mixer, x = Hyena(16, max_length=20, conv_width=conv_width, hidden_dim=8, dtype=torch.float64), tokens()
    mixed = mixer.in_proj(x)
    if conv_width:
        mixed = convolved(mixed, mixer.conv.weight.flip(1)) + mixer.conv.bias
    post_gate, pre_gate, v = mixed.chunk(3, dim=-1)
    gated = pre_gate * v
    y = post_gate * (convolved(gated, published_filter(mixer.filter, 13)) + mixer.skip * gated)
    torch.testing.assert_close(mixer(x), mixer.out_proj(y))


def test_toeplitz_is_the_matrix_of_a_convolution():
    taps, x = tokens(b=1, t=6)[0].T, tokens(t=6)
    y = torch.einsum("dts, bsd -> btd", toeplitz(taps), x)
    torch.testing.assert_close(y, convolved(x, taps))


def test_initial_values():
    mixer = Hyena(2000, hidden_dim=4, frequency=10.0)
    assert torch.equal(mixer.filter.frequency, torch.full((4,), 10.0))
    assert abs(mixer.skip.std().item() - 1) < 0.1 and abs(mixer.skip.mean().item()) < 0.1
    assert 0.95 * 3**-0.5 < mixer.conv.weight.abs().max() <= 3**-0.5
    assert mixer.conv.bias.abs().max() <= 3**-0.5


def test_the_filter_does_not_suffer_from_half_precision():
    """At 4096 positions bfloat16 tells only 256 of them apart; the filter is computed wider."""
    network = ImplicitFilter(16, 4096).bfloat16()
    exact = ImplicitFilter(16, 4096, dtype=torch.float64)
    exact.load_state_dict(network.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        taps = network(4096)
    assert taps.dtype == torch.float32
    torch.testing.assert_close(taps.double(), exact(4096), rtol=1e-4, atol=1e-5)


def test_too_many_tokens_are_refused():
    mixer = Hyena(16, max_length=13, dtype=torch.float64)
    with torch.no_grad():
        _, state = mixer.run(tokens(), State())
        with pytest.raises(ValueError, match="Hyena: at most max_length=13 tokens, got 14; build it"):
            mixer.step(tokens()[:, 0], state)
    with pytest.raises(ValueError, match="got 14"):
        mixer.state_size(14)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(max_length=0), "Hyena: max_length must be at least 1, got 0"),
        (dict(conv_width=12), "conv_width must be 1 to 8 or None, got 12"),
        (dict(num_bands=0), "num_bands and hidden_dim must be at least 1, got 0 and 64"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Hyena(16, **options)


def test_decoding_draws_the_filter_only_when_its_taps_run_out():
    mixer, x, draws = Hyena(16, max_length=20, hidden_dim=8, dtype=torch.float64), tokens(t=13), []
    mixer.filter.register_forward_hook(lambda network, arguments, taps: draws.append(taps.shape[1]))
    with torch.no_grad():
        _, state = mixer.run(x[:, :3], State())
        for i in range(3, 13):
            last, state = mixer.step(x[:, i], state)
        assert draws == [3, 8, 18]
        torch.testing.assert_close(last, mixer(x)[:, -1])
    mixer.step(x[:, 0], state)[0].sum().backward()  # where gradients are recorded, the filter gets its own
    assert mixer.filter.out_proj.weight.grad.abs().sum() > 0
