"""Laws of delta_rule: what it means by other formulas, what it equals in special cases, what it survives."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from subquad.kernels._configs import forced
from subquad.kernels._delta import inverse
from subquad.kernels.delta_rule import delta_rule
from subquad.kernels.delta_rule._triton import _configs
from subquad.kernels.linear_attention import linear_attention

from .contract import BACKENDS, DTYPES, GATES, assert_all_within_budget, call, cast, make_inputs

make = partial(make_inputs, "delta_rule")


@pytest.mark.parametrize("decay", [None, "head", "channel"])
def test_reference_is_a_product_of_matrices(decay):
    """S_t = (I - beta k k^T) diag(a) S_{t-1} + beta k v^T, y_t = scale q S_t."""
    inputs = make(dict(b=1, t=9, h=2, k=5, v=3, decay=decay, scale=0.7))
    q, k, v, beta = (inputs[name][0] for name in ("q", "k", "v", "beta"))
    y, last = delta_rule(**inputs, backend="reference")
    for head in range(2):
        memory = inputs["state"][0, head]
        for t in range(9):
            log_decay = inputs["log_decay"][0, t, head] if decay else torch.zeros(())
            key = k[t, head][:, None]
            erase = torch.eye(5).double() - beta[t, head] * key @ key.T
            memory = erase @ torch.diag(log_decay.exp().expand(5).double()) @ memory
            memory = memory + beta[t, head] * key @ v[t, head][None]
            assert_close(y[0, t, head], 0.7 * q[t, head] @ memory, rtol=1e-12, atol=1e-12)
        assert_close(last[0, head], memory, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("decay", [None, "head", "channel"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_beta_zero_writes_nothing_and_still_has_a_gradient(backend, decay):
    """It forgets by decay alone, as linear attention whose values are zero; and no step divides by beta."""
    inputs = make(dict(b=1, t=35, h=1, k=16, v=16, decay=decay), torch.float32)
    inputs["beta"] = torch.zeros_like(inputs["beta"])
    silent = {name: x for name, x in inputs.items() if name != "beta"} | {"v": torch.zeros_like(inputs["v"])}
    for found, expected in zip(
        delta_rule(**inputs, backend=backend), linear_attention(**silent, backend=backend), strict=True
    ):
        assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert_all_within_budget("delta_rule", backend, inputs)


def nearly_alike(t: int, beta: float) -> dict:
    """Inputs whose keys are all nearly the same, so that the matrix to invert is full of numbers near beta."""
    inputs = make(dict(b=1, t=t, h=1, k=16, v=16), torch.float32)
    same = torch.ones_like(inputs["k"]) + 0.05 * inputs["k"]
    return inputs | {"k": 0.999 * F.normalize(same, dim=-1), "beta": torch.full_like(inputs["beta"], beta)}


@pytest.mark.parametrize("beta", [0.5, 1.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_that_are_nearly_alike_stay_within_the_budget(backend, beta):
    """A series for the inverse of a whole chunk would lose all digits here."""
    assert_all_within_budget("delta_rule", backend, nearly_alike(130 if backend == "torch" else 70, beta))


@pytest.mark.parametrize("backend", BACKENDS)
def test_errors_that_hardly_fade_cost_a_chunk_a_digit(backend):
    """With beta = 2 a memory of such keys is mirrored again and again: what a chunk solves for cancels in the sum."""
    inputs = nearly_alike(130 if backend == "torch" else 70, 2.0)
    exact = call("delta_rule", "reference", cast(inputs, torch.float64))
    for found, expected in zip(call("delta_rule", backend, inputs), exact, strict=True):
        assert (found - expected).abs().max() <= 5e-5 * expected.abs().max()


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32, 64])
def test_inverse(size):
    a = torch.randn(3, size, size, dtype=torch.float64).tril(-1) / size**0.5
    unit = torch.eye(size, dtype=torch.float64)
    assert_close(inverse(a) @ (unit - a), unit.expand_as(a), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_log_decay_is_no_decay(backend, decay):
    inputs = make(dict(b=1, t=35, h=1, k=16, v=16, decay=decay, gates=(0.0,)), torch.float32)
    plain = {name: x for name, x in inputs.items() if name != "log_decay"}
    for faded, never in zip(call("delta_rule", backend, inputs), call("delta_rule", backend, plain), strict=True):
        assert_close(faded, never, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_channel_decay_may_be_equal_in_all_channels(backend):
    inputs = make(dict(b=1, t=35, h=2, k=16, v=8, decay="head"), torch.float32)
    wide = inputs | {"log_decay": inputs["log_decay"][..., None].expand(-1, -1, -1, 16)}
    for narrow, broad in zip(call("delta_rule", backend, inputs), call("delta_rule", backend, wide), strict=True):
        assert_close(narrow, broad, rtol=1e-5, atol=1e-5)


def extreme_cases():
    for backend in BACKENDS:
        for dtype in DTYPES[backend]:
            for decay in ("head", "channel"):
                for name in GATES:
                    if backend == "torch" or name in ("fast", "mixed", "rare"):  # the interpreter is slow
                        short = str(dtype).removeprefix("torch.")
                        yield pytest.param(backend, dtype, decay, GATES[name], id=f"{backend}-{short}-{decay}-{name}")


@pytest.mark.parametrize("backend, dtype, decay, gates", list(extreme_cases()))
def test_extreme_decays_stay_within_the_budget(backend, dtype, decay, gates):
    t = 150 if backend == "torch" else 70
    inputs = make(dict(b=1, t=t, h=1, k=16, v=16, decay=decay, gates=gates), dtype)
    assert_all_within_budget("delta_rule", backend, inputs)


@pytest.mark.parametrize("decay", [None, "head", "channel"])
def test_several_segments_stay_within_the_budget(decay):
    gates = (0.0, -1e-4, -1e-4, -1.0, -20.0, -100.0)
    inputs = make(dict(b=1, t=1100, h=1, k=8, v=8, decay=decay, gates=gates), torch.float32)
    assert_all_within_budget("delta_rule", "torch", inputs)


@pytest.mark.parametrize("decay", [None, "head", "channel"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_single_steps_replay_the_whole(backend, decay):
    inputs = cast(make(dict(b=2, t=9, h=1, k=8, v=8, decay=decay)), torch.float32)
    y, state = delta_rule(**inputs, backend=backend)
    carried = inputs["state"]
    for now in range(9):
        names = [name for name in ("q", "k", "v", "beta", "log_decay") if name in inputs]
        step, carried = delta_rule(
            **{name: inputs[name][:, now : now + 1] for name in names}, state=carried, backend=backend
        )
        assert_close(step, y[:, now : now + 1], rtol=1e-4, atol=1e-4)
    assert_close(carried, state, rtol=1e-4, atol=1e-4)


def configurations() -> list:
    """(kind of decay, table, configuration) of every tile in half precision, each once."""
    found = {}
    parts = dict(
        pairs=_configs.PAIRS, walk=_configs.WALK, bwd_walk=_configs.BACKWARD_WALK, bwd_chunk=_configs.BACKWARD_CHUNK
    )
    for part, tables in parts.items():
        for kind, table in tables.items():
            for (_, dtype, _), config in table.rows.items():
                if dtype != "float32":
                    tile = config.get("BLOCK_T", config.get("BLOCK"))
                    found[kind, part, tile] = table.name, config
    return [pytest.param(key[0], *value, id=", ".join(map(str, key))) for key, value in found.items()]


@pytest.mark.parametrize("kind, table, config", configurations())
def test_every_configuration_gives_the_same(kind, table, config):
    decay = None if kind == "none" else kind
    with forced(table, config):
        inputs = make(dict(b=1, t=70, h=1, k=40, v=40, decay=decay), torch.float16)
        assert_all_within_budget("delta_rule", "triton", inputs)


@pytest.mark.parametrize("change, message", [
    (dict(beta=torch.full((1, 6, 2), 2.5)), r"beta must be in \[0, 2\], got values from 2\.5 to 2\.5"),
    (dict(beta=torch.full((1, 6, 2), float("nan"))), r"beta must be in \[0, 2\]"),
    (dict(beta=torch.zeros(1, 6, 3)), r"beta has h=3, but q has h=2; beta must be \(b, t, h\)"),
    (dict(log_decay=torch.full((1, 6, 2), 0.5)), r"log_decay must be <= 0 .* got 0\.5"),
    (dict(log_decay=torch.zeros(1, 6, 2, 5)), r"log_decay has k=5, but q has k=4; .* \(b, t, h, k\)"),
    (dict(k=torch.zeros(1, 5, 2, 4)), "k has t=5, but q has t=6"),
    (dict(state=torch.zeros(1, 2, 4, 2)), "state has v=2, but v has v=3"),
    (dict(cu_seqlens=torch.tensor([0, 7])), "cu_seqlens must rise from 0 to t=6"),
])  # fmt: skip
def test_bad_input_is_refused(change, message):
    q = torch.zeros(1, 6, 2, 4)
    good = dict(q=q, k=q, v=torch.zeros(1, 6, 2, 3), beta=torch.zeros(1, 6, 2))
    with pytest.raises(ValueError, match=f"^delta_rule: .*{message}"):
        delta_rule(**(good | change))
