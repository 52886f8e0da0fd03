"""Laws of generalized_delta_rule: what it means, what it equals in special cases, what it survives."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from subquad.kernels._configs import forced
from subquad.kernels.delta_rule import delta_rule
from subquad.kernels.generalized_delta_rule import generalized_delta_rule
from subquad.kernels.generalized_delta_rule._triton import _configs
from subquad.kernels.linear_attention import linear_attention

from .contract import BACKENDS, DTYPES, GATES, assert_all_within_budget, cast, make_inputs

make = partial(make_inputs, "generalized_delta_rule")


def test_reference_is_a_product_of_matrices():
    """S_t = (diag(w) + b a^T) S_{t-1} + k v^T, y_t = scale q S_t."""
    inputs = make(dict(b=1, t=9, h=2, k=5, v=3, scale=0.7))
    q, k, v, a, b, log_decay = (inputs[name][0] for name in ("q", "k", "v", "a", "b", "log_decay"))
    y, last = generalized_delta_rule(**inputs, backend="reference")
    for head in range(2):
        memory = inputs["state"][0, head]
        for t in range(9):
            transition = torch.diag(log_decay[t, head].exp()) + torch.outer(b[t, head], a[t, head])
            memory = transition @ memory + torch.outer(k[t, head], v[t, head])
            assert_close(y[0, t, head], 0.7 * q[t, head] @ memory, rtol=1e-12, atol=1e-12)
        assert_close(last[0, head], memory, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_asking_and_adding_under_the_key_is_the_delta_rule(backend):
    inputs = cast(make_inputs("delta_rule", dict(b=1, t=67, h=2, k=16, v=16, decay="channel")), torch.float32)
    k, beta, log_decay = inputs["k"], inputs["beta"][..., None], inputs["log_decay"]
    general = {name: inputs[name] for name in ("q", "v", "log_decay", "state")}
    general |= dict(k=beta * k, a=-k * log_decay.exp(), b=beta * k)
    expected = delta_rule(**inputs, backend=backend)
    for found, wanted in zip(generalized_delta_rule(**general, backend=backend), expected, strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_answers_it_is_linear_attention(backend):
    inputs = cast(make(dict(b=1, t=67, h=2, k=16, v=16)), torch.float32)
    inputs["b"] = torch.zeros_like(inputs["b"])
    plain = {name: x for name, x in inputs.items() if name not in "ab"}
    expected = linear_attention(**plain, backend=backend)
    for found, wanted in zip(generalized_delta_rule(**inputs, backend=backend), expected, strict=True):
        assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_asks_before_its_own_decay(backend):
    """What it answers itself with survives a decay that leaves nothing else."""
    inputs = cast(make(dict(b=1, t=2, h=1, k=4, v=3)), torch.float32)
    inputs["log_decay"] = torch.zeros_like(inputs["log_decay"])
    inputs["log_decay"][:, 1] = -100.0
    _, last = generalized_delta_rule(**inputs, backend=backend)
    (k, v, a, b), start = (inputs[name][0, :, 0] for name in "kvab"), inputs["state"][0, 0]
    first = start + torch.outer(b[0], a[0] @ start) + torch.outer(k[0], v[0])
    assert_close(last[0, 0], torch.outer(b[1], a[1] @ first) + torch.outer(k[1], v[1]), rtol=1e-4, atol=1e-5)


def extreme_cases():
    for backend in BACKENDS:
        for dtype in DTYPES[backend]:
            for name in GATES:
                if backend == "torch" or name in ("fast", "mixed", "rare"):  # the interpreter is slow
                    short = str(dtype).removeprefix("torch.")
                    yield pytest.param(backend, dtype, GATES[name], id=f"{backend}-{short}-{name}")


@pytest.mark.parametrize("backend, dtype, gates", list(extreme_cases()))
def test_extreme_decays_stay_within_the_budget(backend, dtype, gates):
    t = 150 if backend == "torch" else 70
    inputs = make(dict(b=1, t=t, h=1, k=16, v=16, gates=gates), dtype)
    assert_all_within_budget("generalized_delta_rule", backend, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_that_are_nearly_alike_stay_within_the_budget(backend):
    """A series for the inverse of a whole chunk would lose all digits here."""
    inputs = make(dict(b=1, t=130 if backend == "torch" else 70, h=1, k=16, v=16), torch.float32)
    key = 0.999 * F.normalize(torch.ones_like(inputs["k"]) + 0.05 * inputs["k"], dim=-1)
    assert_all_within_budget("generalized_delta_rule", backend, inputs | dict(k=key, a=-key, b=key))


def test_several_segments_stay_within_the_budget():
    gates = (0.0, -1e-4, -1e-4, -1.0, -20.0, -100.0)
    inputs = make(dict(b=1, t=1100, h=1, k=8, v=8, gates=gates), torch.float32)
    assert_all_within_budget("generalized_delta_rule", "torch", inputs)


@pytest.mark.parametrize("config", [
    dict(BLOCK_T=16, num_warps=4, num_stages=1), dict(BLOCK_T=32, num_warps=4, num_stages=1)
], ids=str)  # fmt: skip
def test_chunks_of_any_size_agree(config):
    with forced(_configs.PAIRS, config):
        inputs = make(dict(b=1, t=70, h=1, k=20, v=40), torch.float32)
        assert_all_within_budget("generalized_delta_rule", "triton", inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_single_steps_replay_the_whole(backend):
    inputs = cast(make(dict(b=2, t=9, h=2, k=8, v=5)), torch.float32)
    y, state = generalized_delta_rule(**inputs, backend=backend)
    carried = inputs["state"]
    for now in range(9):
        step = {name: x[:, now : now + 1] for name, x in inputs.items() if name not in ("state", "scale")}
        token, carried = generalized_delta_rule(**step, state=carried, backend=backend)
        assert_close(token[:, 0], y[:, now], rtol=1e-4, atol=1e-5)
    assert_close(carried, state, rtol=1e-4, atol=1e-5)
