"""Attention and its window against the equation, written with complex rotations."""

import pytest
import torch

from subquad.mixers import Attention, SlidingWindow, State

from .variants import tokens


def turned(x, base):
    """Channel pairs (i, i + k/2) as complex numbers, times exp(i * position * base^(-2i/k)); x is (b, t, h, k)."""
    t, k = x.shape[1], x.shape[-1]
    angles = torch.arange(t)[:, None].double() * base ** -(torch.arange(0, k, 2).double() / k)
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


def expected(mixer, x, visible, base):
    h, g, k = mixer.heads[0], mixer.heads[1], mixer.head_dim
    qkv = x @ mixer.qkv_proj.weight.T
    q = qkv[..., : h * k].unflatten(-1, (h, k))
    keys = qkv[..., h * k : (h + g) * k].unflatten(-1, (g, k))
    v = qkv[..., (h + g) * k :].unflatten(-1, (g, k))
    if base is not None:
        q, keys = turned(q, base), turned(keys, base)
    heads = []
    for i in range(h):
        j = i * g // h
        scores = q[:, :, i] @ keys[:, :, j].transpose(1, 2) / k**0.5
        heads.append(scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v[:, :, j])
    return torch.cat(heads, dim=-1) @ mixer.out_proj.weight.T


@pytest.mark.parametrize(
    "options",
    [
        dict(num_heads=2),
        dict(num_heads=4, num_kv_heads=2, head_dim=6, rotary_base=500.0),
        dict(num_heads=3, num_kv_heads=1, head_dim=8, rotary_base=None),
    ],
    ids=str,
)
def test_attention_is_softmax_over_the_past(options):
    mixer, x = Attention(16, **options, dtype=torch.float64), tokens()
    visible = torch.ones(13, 13).tril().bool()
    y = expected(mixer, x, visible, options.get("rotary_base", 10_000.0))
    torch.testing.assert_close(mixer(x), y)


@pytest.mark.parametrize("window", [1, 2, 5, 13, 64])
def test_a_window_sees_itself_and_the_tokens_just_before(window):
    mixer, x = SlidingWindow(16, window=window, num_heads=2, dtype=torch.float64), tokens()
    distance = torch.arange(13)[:, None] - torch.arange(13)
    y = expected(mixer, x, (distance >= 0) & (distance < window), 10_000.0)
    torch.testing.assert_close(mixer(x), y)


def test_scores_depend_on_distances_only():
    """Shifted in time, the mixing matrix stays what it was: positions continue from the state."""
    mixer, x = Attention(16, num_heads=2, dtype=torch.float64), tokens()
    inputs, _ = mixer.project(x, None, 0)
    shifted, _ = mixer.project(x, None, 1000)
    assert not torch.allclose(shifted["q"], inputs["q"])
    torch.testing.assert_close(mixer.mix(shifted, None)[0], mixer.mix(inputs, None)[0])


def test_a_window_forgets_its_prefill():
    """The state of a long prompt is a copy of its last tokens: nothing keeps the rest alive."""
    mixer = SlidingWindow(16, window=4, dtype=torch.float64)
    with torch.no_grad():
        _, state = mixer.run(tokens(t=100), State())
        assert state.memory.capacity == len(state.memory) == 3
        for x in tokens(t=40).unbind(1):
            _, state = mixer.step(x, state)
            assert len(state.memory) == 3 and state.memory.capacity <= 8


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(num_heads=3), "num_heads must divide d_model, got num_heads=3 and d_model=16"),
        (dict(num_heads=0), "num_kv_heads must divide num_heads"),
        (dict(num_kv_heads=3), "num_kv_heads must divide num_heads, got num_kv_heads=3 and num_heads=4"),
        (dict(head_dim=3), "heads must be even, got head_dim=3"),
        (dict(rotary_base=-1.0), "rotary_base must be positive, got -1.0"),
        (dict(conv_width=9), "conv_width must be 1 to 8 or None, got 9"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Attention(16, **options)


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="SlidingWindow: window counts the token itself, so it must be at least 1"):
        SlidingWindow(16, window=0)
