"""Laws of selective_scan: what it equals in special cases, and that segments and extreme steps change nothing."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from subquad.kernels import _channels, _target
from subquad.kernels.linear_recurrence import linear_recurrence
from subquad.kernels.long_conv import long_conv
from subquad.kernels.selective_scan import _torch, _triton, selective_scan

from .contract import BACKENDS, DTYPES, assert_all_within_budget, cast, make_inputs

make = partial(make_inputs, "selective_scan")
STEPS = {"none": (0.0,), "small": (1e-4,), "large": (100.0,), "mixed": (0.0, 1e-4, 1.0, 20.0, 100.0)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_step_entry_and_reading_for_all_tokens_is_a_long_convolution(backend):
    """S4D: its filter, materialised, is K_l = sum_m C_m exp(l dt A_m) dt B_m."""
    t, d, m = 40, 6, 5
    inputs = cast(make(dict(b=1, t=t, d=d, m=m, state=False)), torch.float32)
    for name in ("dt", "B", "C"):
        inputs[name] = inputs[name][:, :1].expand(-1, t, -1)
    step, enter, read = (inputs[name][0, 0] for name in ("dt", "B", "C"))
    exponent = torch.arange(t)[:, None, None] * step[:, None] * inputs["A"]  # (t, d, m)
    filter = torch.einsum("tdm,m,m,d->dt", exponent.exp(), read, enter, step)
    y, _ = selective_scan(**inputs, backend=backend)
    assert_close(y, long_conv(inputs["x"], filter, inputs["D"], backend="torch"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_state_a_channel_is_a_linear_recurrence(backend):
    inputs = cast(make(dict(b=2, t=30, d=4, m=1, skip=False)), torch.float32)
    h, _ = linear_recurrence(
        inputs["dt"] * inputs["x"] * inputs["B"], inputs["dt"] * inputs["A"][:, 0], state=inputs["state"][..., 0]
    )
    assert_close(selective_scan(**inputs, backend=backend)[0], inputs["C"] * h, rtol=1e-5, atol=1e-5)


def extreme_cases():
    for backend in BACKENDS:
        for dtype in DTYPES[backend]:
            for name, steps in STEPS.items():
                yield pytest.param(backend, dtype, steps, id=f"{backend}-{str(dtype).removeprefix('torch.')}-{name}")


@pytest.mark.parametrize("backend, dtype, steps", list(extreme_cases()))
def test_extreme_steps_stay_within_the_budget(backend, dtype, steps):
    assert_all_within_budget("selective_scan", backend, make(dict(b=1, t=70, d=5, m=3, steps=steps), dtype))


def test_runs_of_any_length_change_nothing(monkeypatch):
    monkeypatch.setattr(_torch, "RUN_ELEMENTS", 300)
    inputs = make(dict(b=2, t=101, d=7, m=3), torch.float32)
    assert len(_torch._runs(inputs["x"], inputs["A"])) == 15
    assert_all_within_budget("selective_scan", "torch", inputs)


@pytest.mark.parametrize("options", [
    dict(), dict(state=False, skip=False), dict(steps=STEPS["mixed"]), dict(cu_seqlens=(0, 0, 1, 190, 220)),
], ids=str)  # fmt: skip
def test_segments_side_by_side_give_what_one_walk_gives(options, monkeypatch):
    for module in (_target, _channels):
        monkeypatch.setattr(module, "multiprocessors", lambda: 1000)
    monkeypatch.setattr(_channels, "MIN_SEGMENT", 40)
    assert _channels.segment_of(220, 1, multiple=_triton.SPAN) == 64
    inputs = make(dict(b=1, t=220, d=9, m=3) | options, torch.float32)
    assert_all_within_budget("selective_scan", "triton", inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_steps_replay_the_whole(backend):
    inputs = cast(make(dict(b=2, t=9, d=5, m=3)), torch.float32)
    y, state = selective_scan(**inputs, backend=backend)
    carried = inputs["state"]
    for now in range(9):
        token = {name: inputs[name][:, now : now + 1] for name in ("x", "dt", "B", "C")}
        step, carried = selective_scan(**token, A=inputs["A"], D=inputs["D"], state=carried, backend=backend)
        assert_close(step, y[:, now : now + 1], rtol=1e-4, atol=1e-5)
    assert_close(carried, state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change, message", [
    (dict(dt=torch.full((1, 6, 3), -0.5)), r"dt must be >= 0, got -0\.5; apply softplus before"),
    (dict(A=torch.full((3, 2), 0.5)), r"A must be <= 0, so that states fade, got 0\.5"),
    (dict(A=torch.zeros(4, 2)), r"A has d=4, but x has d=3; A must be \(d, m\)"),
    (dict(B=torch.zeros(1, 6, 4)), r"B has m=4, but A has m=2; B must be \(b, t, m\)"),
    (dict(state=torch.zeros(1, 3, 4)), "state has m=4, but A has m=2"),
    (dict(cu_seqlens=torch.tensor([0, 7])), "cu_seqlens must rise from 0 to t=6"),
])  # fmt: skip
def test_bad_input_is_refused(change, message):
    x, states = torch.zeros(1, 6, 3), torch.zeros(1, 6, 2)
    good = dict(x=x, dt=x, A=torch.zeros(3, 2), B=states, C=states)
    with pytest.raises(ValueError, match=f"^selective_scan: .*{message}"):
        selective_scan(**(good | change))
