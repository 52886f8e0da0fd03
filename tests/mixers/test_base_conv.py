"""BaseConv against its equation, tap by tap."""

import pytest
import torch

from subquad.mixers import BaseConv, State

from .variants import tokens


def convolved(x, taps):
    """sum_i taps[:, i] * x_{t-i}; taps (d, l), the first meets the newest token."""
    y = torch.zeros_like(x)
    for i in range(min(taps.shape[1], x.shape[1])):
        y[:, i:] += taps[:, i] * x[:, : x.shape[1] - i]
    return y


@pytest.mark.parametrize("width", [1, 3, 8])
def test_short_filter(width):
    mixer, x = BaseConv(16, conv_width=width, dtype=torch.float64), tokens()
    gate = x @ mixer.gate_proj.weight.T + mixer.gate_proj.bias
    y = gate * (convolved(x, mixer.conv.weight.flip(1)) + mixer.conv.bias)
    torch.testing.assert_close(mixer(x), y)


@pytest.mark.parametrize("implicit", [False, True])
def test_long_filter(implicit):
    mixer, x = BaseConv(16, conv_width=None, max_length=20, implicit=implicit, dtype=torch.float64), tokens()
    torch.nn.init.normal_(mixer.bias)
    gate = x @ mixer.gate_proj.weight.T + mixer.gate_proj.bias
    taps = mixer.filter(20)
    assert taps.shape == (16, 20)
    torch.testing.assert_close(mixer(x), gate * (convolved(x, taps) + mixer.bias))


def test_initial_values():
    for weight, length in (
        (BaseConv(64).conv.weight, 3),
        (BaseConv(64, conv_width=None, max_length=100).filter.weight, 100),
    ):
        assert 0.95 * length**-0.5 < weight.abs().max() <= length**-0.5
    assert torch.equal(BaseConv(16, conv_width=None, max_length=5).bias, torch.zeros(16))


@pytest.mark.parametrize("conv_width", [None, 3])
def test_too_many_tokens_are_refused(conv_width):
    mixer = BaseConv(16, conv_width=conv_width, max_length=14, dtype=torch.float64)
    with torch.no_grad():
        _, state = mixer.run(tokens(), State())
        _, state = mixer.step(tokens()[:, 0], state)
        with pytest.raises(ValueError, match="BaseConv: at most max_length=14 tokens, got 15; build it"):
            mixer.step(tokens()[:, 0], state)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(conv_width=0), "conv_width must be 1 to 8 or None, got 0"),
        (dict(implicit=True), "only a long filter is implicit, set conv_width=None; got 3"),
        (dict(conv_width=None), "conv_width=None asks for a long filter, which needs max_length; got None"),
        (dict(max_length=0), "max_length must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BaseConv(16, **options)
