"""SinkWindow is softmax over the first and the last tokens."""

import pytest
import torch

from subquad.mixers import Attention, SinkWindow

from .variants import tokens


@pytest.mark.parametrize("t", [1, 3, 6, 23])
@pytest.mark.parametrize("sinks, window", [(1, 1), (2, 4), (5, 3)])
def test_it_is_softmax_over_both(t, sinks, window):
    mixer = SinkWindow(16, sinks=sinks, window=window, num_kv_heads=2, rotary_base=None, dtype=torch.float64)
    x = tokens(t=t)
    q, k, v = (x @ mixer.qkv_proj.weight.T).unflatten(-1, (-1, 4)).split((4, 2, 2), dim=-2)
    k, v = (part.repeat_interleave(2, dim=2) for part in (k, v))
    query, key = torch.arange(t)[:, None], torch.arange(t)
    visible = (key <= query) & ((key > query - window) | (key < sinks))
    scores = torch.einsum("bthk, bshk -> bhts", q, k) / 2
    y = torch.einsum("bhts, bshv -> bthv", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)
    torch.testing.assert_close(mixer(x), y.flatten(-2) @ mixer.out_proj.weight.T)


def test_a_window_that_sees_all_is_attention():
    mixer, x = SinkWindow(16, window=32, dtype=torch.float64), tokens()
    softmax = Attention(16, dtype=torch.float64)
    softmax.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x), softmax(x))


def test_no_sinks_are_refused():
    with pytest.raises(ValueError, match="sinks must be at least 1, got 0; use SlidingWindow"):
        SinkWindow(16, sinks=0)
