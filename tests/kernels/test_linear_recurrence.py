"""Laws of linear_recurrence: what it equals, and that segments and extreme decays change nothing."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from subquad.kernels import _channels, _target
from subquad.kernels.linear_recurrence import _torch, linear_recurrence

from .contract import BACKENDS, DTYPES, GATES, assert_all_within_budget, cast, make_inputs

make = partial(make_inputs, "linear_recurrence")


def test_reference_is_the_sum_of_what_is_left():
    """y_i = exp(log_decay_1 + ... + log_decay_i) state + sum_{j <= i} exp(log_decay_{j+1} + ... + log_decay_i) x_j."""
    inputs = make(dict(b=2, t=17, d=3))
    x, log_decay, state = inputs.values()
    y, last = linear_recurrence(**inputs, backend="reference")
    for i in range(17):
        expected = log_decay[:, : i + 1].sum(1).exp() * state
        for j in range(i + 1):
            expected = expected + log_decay[:, j + 1 : i + 1].sum(1).exp() * x[:, j]
        assert_close(y[:, i], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(last, y[:, -1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_never_fades_is_summed_and_what_fades_at_once_is_itself(backend):
    x = torch.randn(1, 50, 6)
    assert_close(linear_recurrence(x, torch.zeros_like(x), backend=backend)[0], x.cumsum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(linear_recurrence(x, torch.full_like(x, -200.0), backend=backend)[0], x)


def extreme_cases():
    for backend in BACKENDS:
        for dtype in DTYPES[backend]:
            for name in GATES:
                yield pytest.param(
                    backend, dtype, GATES[name], id=f"{backend}-{str(dtype).removeprefix('torch.')}-{name}"
                )


@pytest.mark.parametrize("backend, dtype, gates", list(extreme_cases()))
def test_extreme_decays_stay_within_the_budget(backend, dtype, gates):
    assert_all_within_budget("linear_recurrence", backend, make(dict(b=1, t=90, d=5, gates=gates), dtype))


def test_segments_of_the_cache_change_nothing(monkeypatch):
    monkeypatch.setattr(_torch, "SEGMENT_ELEMENTS", 300)
    inputs = make(dict(b=2, t=101, d=7), torch.float32)
    assert len(_torch._segments(inputs["x"])) == 5
    assert_all_within_budget("linear_recurrence", "torch", inputs)


@pytest.mark.parametrize("options", [
    dict(), dict(state=False), dict(gates=GATES["mixed"]), dict(cu_seqlens=(0, 0, 1, 260, 300)),
], ids=str)  # fmt: skip
def test_segments_side_by_side_give_what_one_walk_gives(options, monkeypatch):
    for module in (_target, _channels):
        monkeypatch.setattr(module, "multiprocessors", lambda: 1000)
    monkeypatch.setattr(_channels, "MIN_SEGMENT", 64)
    assert _channels.segment_of(300, 1) == 75
    assert_all_within_budget("linear_recurrence", "triton", make(dict(b=1, t=300, d=9) | options, torch.float32))


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_steps_replay_the_whole(backend):
    inputs = cast(make(dict(b=2, t=9, d=5)), torch.float32)
    y, state = linear_recurrence(**inputs, backend=backend)
    carried = inputs["state"]
    for now in range(9):
        token = {name: inputs[name][:, now : now + 1] for name in ("x", "log_decay")}
        step, carried = linear_recurrence(**token, state=carried, backend=backend)
        assert_close(step, y[:, now : now + 1], rtol=1e-5, atol=1e-5)
    assert_close(carried, state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change, message", [
    (dict(log_decay=torch.full((1, 6, 3), 0.5)), r"log_decay must be <= 0 .* got 0\.5"),
    (dict(log_decay=torch.zeros(1, 6, 2)), r"log_decay has d=2, but x has d=3; log_decay must be \(b, t, d\)"),
    (dict(log_decay=torch.zeros(1, 6, 3, dtype=torch.float16)), "gates, biases and states must be"),
    (dict(state=torch.zeros(2, 3)), "state has n=2, but the call has n=1"),
    (dict(cu_seqlens=torch.tensor([0, 7])), "cu_seqlens must rise from 0 to t=6"),
])  # fmt: skip
def test_bad_input_is_refused(change, message):
    good = dict(x=torch.zeros(1, 6, 3), log_decay=torch.zeros(1, 6, 3))
    with pytest.raises(ValueError, match=f"^linear_recurrence: .*{message}"):
        linear_recurrence(**(good | change))
