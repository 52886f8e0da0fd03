"""Laws of linear_attention: what it means by other formulas, what it equals in special cases, what it survives."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from subquad.kernels import _target
from subquad.kernels._configs import forced
from subquad.kernels.feature_maps import FEATURE_MAPS
from subquad.kernels.linear_attention import linear_attention
from subquad.kernels.linear_attention._triton import _configs, _segments, backward

from .contract import BACKENDS, DTYPES, GATES, assert_all_within_budget, call, cast, make_inputs, seeded

make = partial(make_inputs, "linear_attention")


def by_matrix(q, k, v, log_decay=None, scale=None, normalize=False, state=None):
    """O(t^2) in float64: y_i = scale * sum_{j <= i} sum_d q_id k_jd exp(log_decay_{j+1} + ... + log_decay_i)_d v_j."""
    b, t, h, width = q.shape
    scale = width**-0.5 if scale is None else scale
    log_decay = q.new_zeros(b, t, h, 1) if log_decay is None else log_decay.reshape(b, t, h, -1)
    sums = torch.zeros(b, t, t, h, log_decay.shape[-1], dtype=q.dtype)
    for i in range(t):
        for j in range(i):
            sums[:, i, j] = log_decay[:, j + 1 : i + 1].sum(1)
    weights = scale * torch.einsum("bihd,bjhd,bijhd->bijh", q, k, sums.exp().expand(b, t, t, h, width))
    weights *= torch.ones(t, t, dtype=q.dtype).tril()[:, :, None]
    y = torch.einsum("bijh,bjhv->bihv", weights, v)
    since_start = log_decay.cumsum(1).exp()
    den = weights.sum(2)
    if state is not None:
        from_state = scale * torch.einsum("bihd,bhdv->bihv", q * since_start, state)
        y = y + (from_state[..., :-1] if normalize else from_state)
        den = den + from_state[..., -1]
    return y / den[..., None] if normalize else y


@pytest.mark.parametrize("decay", [None, "head", "channel"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_reference_is_the_masked_matrix(decay, normalize, state):
    inputs = make(dict(b=2, t=19, h=2, k=5, v=3, decay=decay, normalize=normalize, state=state))
    y, _ = linear_attention(**inputs, backend="reference")
    assert_close(y, by_matrix(**inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decay", [None, "head", "channel"])
@pytest.mark.parametrize("normalize", [False, True])
def test_reference_gradients(decay, normalize):
    inputs = make(dict(b=1, t=4, h=2, k=3, v=2, decay=decay, normalize=normalize))
    names = [name for name in ("q", "k", "v", "log_decay", "state") if name in inputs]

    def run(*tensors):
        return linear_attention(**dict(zip(names, tensors, strict=True)), normalize=normalize, backend="reference")

    assert torch.autograd.gradcheck(run, [inputs[name].requires_grad_() for name in names])


@pytest.mark.parametrize("backend", BACKENDS)
def test_retention_is_a_constant_decay(backend):
    """Sun et al. 2023 (arXiv 2307.08621), eq. 5: (Q K^T * D) V with D_ij = gamma^(i - j)."""
    t, h = 40, 2
    inputs = cast(make(dict(b=1, t=t, h=h, k=8, v=8, state=False)), torch.float32)
    gamma = 1 - 2.0 ** -torch.arange(5, 5 + h, dtype=torch.float64)
    apart = torch.arange(t)[:, None] - torch.arange(t)[None, :]
    decay = torch.where(apart >= 0, gamma[:, None, None] ** apart.clamp(min=0), 0.0)  # (h, t, t)
    q, k, v = (inputs[name].double().transpose(1, 2) for name in "qkv")
    expected = ((q @ k.mT) * decay * 8**-0.5 @ v).transpose(1, 2)
    y, _ = linear_attention(**inputs, log_decay=gamma.log().float().expand(1, t, h), backend=backend)
    assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_log_decay_is_no_decay(backend, decay):
    inputs = cast(make(dict(b=1, t=35, h=1, k=16, v=16, decay=decay, gates=(0.0,))), torch.float32)
    plain = {name: x for name, x in inputs.items() if name != "log_decay"}
    for faded, never in zip(
        call("linear_attention", backend, inputs), call("linear_attention", backend, plain), strict=True
    ):
        assert_close(faded, never, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_channel_decay_may_be_equal_in_all_channels(backend):
    inputs = cast(make(dict(b=1, t=35, h=2, k=16, v=8, decay="head")), torch.float32)
    wide = inputs | {"log_decay": inputs["log_decay"][..., None].expand(-1, -1, -1, 16)}
    for narrow, broad in zip(
        call("linear_attention", backend, inputs), call("linear_attention", backend, wide), strict=True
    ):
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
    assert_all_within_budget(
        "linear_attention", backend, make(dict(b=1, t=t, h=1, k=16, v=16, decay=decay, gates=gates), dtype)
    )


@pytest.mark.parametrize("decay", [None, "head", "channel"])
def test_several_segments_stay_within_the_budget(decay):
    gates = (0.0, -1e-4, -1e-4, -1.0, -20.0, -100.0)
    assert_all_within_budget(
        "linear_attention", "torch", make(dict(b=1, t=1100, h=1, k=8, v=8, decay=decay, gates=gates), torch.float32)
    )


@pytest.mark.parametrize("decay", [None, "head", "channel"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_normalized_weights_sum_to_one(backend, decay):
    """So values that are all ones are read back as ones, whatever was asked."""
    inputs = cast(make(dict(b=1, t=37, h=2, k=16, v=4, decay=decay, normalize=True, state=False)), torch.float32)
    inputs["v"] = torch.ones_like(inputs["v"])
    y, state = linear_attention(**inputs, backend=backend)
    assert_close(y, torch.ones_like(y), rtol=1e-5, atol=1e-5)
    assert_close(state[..., :-1], state[..., -1:].expand(-1, -1, -1, 4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decay", [None, "head", "channel"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_single_steps_replay_the_whole(backend, decay, normalize):
    inputs = cast(make(dict(b=2, t=9, h=1, k=8, v=8, decay=decay, normalize=normalize)), torch.float32)
    y, state = linear_attention(**inputs, backend=backend)
    carried = inputs["state"]
    for now in range(9):
        token = {name: inputs[name][:, now : now + 1] for name in ("q", "k", "v", "log_decay") if name in inputs}
        step, carried = linear_attention(**token, normalize=normalize, state=carried, backend=backend)
        assert_close(step, y[:, now : now + 1], rtol=1e-4, atol=1e-4)
    assert_close(carried, state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["elu", "relu_squared"])
def test_feature_maps_make_a_weighted_mean(name):
    """With a positive map, y lies between the smallest and the largest value seen so far."""
    phi = FEATURE_MAPS[name]
    q, k, v = (torch.randn(1, 50, 2, 8, generator=seeded(seed)) for seed in range(3))
    y, _ = linear_attention(phi(q) + 1e-3, phi(k) + 1e-3, v, normalize=True, backend="torch")
    assert (y <= v.cummax(1).values + 1e-5).all() and (y >= v.cummin(1).values - 1e-5).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gates_and_state_may_be_float32_beside_half(backend):
    inputs = make(dict(b=1, t=20, h=1, k=16, v=16, decay="head"))
    half = {name: inputs[name].half() for name in "qkv"}
    wide = {name: inputs[name].float().requires_grad_() for name in ("log_decay", "state")}
    y, state = linear_attention(**half, **wide, backend=backend)
    assert (y.dtype, state.dtype) == (torch.float16, torch.float32)
    dlog_decay, dstate = torch.autograd.grad(y.float().sum() + state.sum(), tuple(wide.values()))
    assert dlog_decay.dtype == dstate.dtype == torch.float32


@pytest.mark.parametrize("decay", [None, "head", "channel"])
def test_half_precision_is_only_that_of_the_tensors(decay):
    """In between all is float32, the scale included: what comes out is what float32 gives, rounded once."""
    inputs = make(dict(b=1, t=70, h=2, k=16, v=16, decay=decay))
    half = {name: inputs[name].bfloat16() for name in "qkv"}
    gates = {} if decay is None else {"log_decay": inputs["log_decay"].float()}
    y, state = linear_attention(**half, **gates, scale=0.3, backend="torch")
    wide = {name: x.float() for name, x in half.items()}
    expected, expected_state = linear_attention(**wide, **gates, scale=0.3, backend="torch")
    assert torch.equal(y, expected.bfloat16()) and torch.equal(state, expected_state)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(log_decay=torch.full((1, 6, 2), 0.5)), r"log_decay must be <= 0 .* got 0\.5"),
        (dict(log_decay=torch.full((1, 6, 2), float("nan"))), "log_decay must be <= 0"),
        (dict(log_decay=torch.zeros(1, 6, 3)), r"log_decay has h=3, but q has h=2; log_decay must be \(b, t, h\)"),
        (dict(log_decay=torch.zeros(1, 6, 2, 5)), r"log_decay has k=5, but q has k=4; .* \(b, t, h, k\)"),
        (dict(k=torch.zeros(1, 5, 2, 4)), "k has t=5, but q has t=6"),
        (dict(v=torch.zeros(1, 6, 2)), r"v must be \(b, t, h, v\), got shape \(1, 6, 2\)"),
        (dict(k=torch.zeros(1, 6, 2, 4, dtype=torch.float16)), "dtypes do not mix"),
        (dict(state=torch.zeros(1, 2, 4, 3), normalize=True), "state has m=3, but the call has m=4"),
        (dict(state=torch.zeros(2, 2, 4, 3)), "state has n=2, but the call has n=1"),
        (dict(state=torch.zeros(1, 2, 4, 3, dtype=torch.float16)), "gates, biases and states must be"),
        (dict(cu_seqlens=torch.tensor([0, 7])), "cu_seqlens must rise from 0 to t=6"),
        (dict(backend="cuda"), "unknown backend 'cuda'"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = dict(q=torch.zeros(1, 6, 2, 4), k=torch.zeros(1, 6, 2, 4), v=torch.zeros(1, 6, 2, 3))
    with pytest.raises(ValueError, match=f"^linear_attention: .*{message}"):
        linear_attention(**(good | change))


def few_programs(multiprocessors: int, monkeypatch) -> None:
    """A GPU with so many multiprocessors."""
    for module in (_target, _segments):
        monkeypatch.setattr(module, "multiprocessors", lambda: multiprocessors)


@pytest.mark.parametrize("options", [
    dict(), dict(decay="head"), dict(decay="channel", normalize=True), dict(decay="head", normalize=True),
    dict(decay="head", gates=GATES["mixed"]), dict(decay="channel", gates=GATES["fast"]),
    dict(decay="head", cu_seqlens=(0, 0, 1, 260, 300)), dict(decay="channel", cu_seqlens=(0, 150, 150, 300)),
], ids=str)  # fmt: skip
def test_segments_side_by_side_give_what_one_walk_gives(options, monkeypatch):
    few_programs(1000, monkeypatch)
    monkeypatch.setattr(_segments, "MIN_SEGMENT", 64)
    assert _segments.segment_of(300, 1) == 128
    assert_all_within_budget(
        "linear_attention", "triton", make(dict(b=1, t=300, h=1, k=16, v=12) | options, torch.float32)
    )


@pytest.mark.parametrize("decay", ["head", "channel"])
@pytest.mark.parametrize("cu_seqlens", [None, (0, 60, 60, 101, 150)])
def test_the_gradient_of_decay_begins_anew_at_each_anchor(decay, cu_seqlens, monkeypatch):
    monkeypatch.setattr(backward, "ANCHOR", 64)
    dims = dict(b=1, t=150, h=1, k=16, v=12, decay=decay, cu_seqlens=cu_seqlens)
    assert_all_within_budget("linear_attention", "triton", make(dims, torch.float32))


def configurations() -> list:
    """(kind of decay, table, tile sizes) of every configuration in half precision, each tile once."""
    found = {}
    for part, tables in (("fwd", _configs.FORWARD), ("bwd_q", _configs.BACKWARD_Q), ("bwd_kv", _configs.BACKWARD_KV)):
        for kind, table in tables.items():
            for (_, dtype, _), config in table.rows.items():
                if dtype != "float32":
                    found[kind, part, config["BLOCK_T"], config["BLOCK"]] = table.name, config
    return [pytest.param(key[0], *value, id=", ".join(map(str, key))) for key, value in found.items()]


@pytest.mark.parametrize("kind, table, config", configurations())
def test_every_configuration_gives_the_same(kind, table, config):
    decay = None if kind == "none" else kind
    with forced(table, config):
        dims = dict(b=1, t=70, h=1, k=40, v=40, decay=decay, normalize=True)
        assert_all_within_budget("linear_attention", "triton", make(dims, torch.float16))


def test_long_spans_are_cut_at_anchors(monkeypatch):
    few_programs(132, monkeypatch)
    assert _segments.segment_of(4096, 128) == 4096  # programs enough
    assert _segments.segment_of(16384, 4) == 1024
    assert _segments.segment_of(1 << 20, 26) % _segments.ANCHOR == 0
    assert _segments.segment_of(1500, 1) == 1500  # too short to be cut
