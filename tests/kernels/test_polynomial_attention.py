"""Laws of polynomial_attention beyond the contract."""

import math

import pytest
import torch
from torch import Tensor

from subquad.kernels import _target
from subquad.kernels._configs import forced
from subquad.kernels.polynomial_attention import _torch, _triton, num_features, polynomial_attention
from subquad.kernels.polynomial_attention._inputs import BASED, CASES, REBASED
from subquad.kernels.polynomial_attention._triton._configs import BWD_WALK, WALK

from .contract import assert_within_budget, call, exact_and_rounded, gradients, make_inputs, seeded

BACKENDS = ("reference", "torch", "triton")


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


def qkv(t: int, k: int, v: int, h: int = 1, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [randn(1, t, h, width, seed=seed, dtype=dtype) for seed, width in enumerate((k, k, v))]


def taylor_map(x: Tensor) -> Tensor:
    """Based's feature map as published: [1, x / d^(1/4), vec(x x^T) / (sqrt(2) sqrt(d))]."""
    d = x.shape[-1]
    squares = (x[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat([torch.ones_like(x[..., :1]), x / d**0.25, squares / (math.sqrt(2) * math.sqrt(d))], dim=-1)


def linear_attention_of(features, q: Tensor, k: Tensor, v: Tensor, normalize: bool) -> Tensor:
    """y_i = phi(q_i) sum_{j <= i} phi(k_j) v_j^T, with the sums written out."""
    q, k = features(q), features(k)
    y = torch.einsum("bthr,bthrv->bthv", q, torch.einsum("bthr,bthv->bthrv", k, v).cumsum(1))
    if not normalize:
        return y
    return y / (torch.einsum("bthr,bthr->bth", q, k.cumsum(1))[..., None] + 1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("k", [4, 16])
def test_based_is_linear_attention_with_the_taylor_map(backend, normalize, k):
    q, k, v = qkv(50, k, 6)
    y, _ = polynomial_attention(q, k, v, BASED, normalize=normalize, backend=backend)
    torch.testing.assert_close(y, linear_attention_of(taylor_map, q, k, v, normalize))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("normalize", [False, True])
def test_rebased_is_linear_attention_with_all_products(backend, normalize):
    q, k, v = qkv(30, 5, 4)
    y, _ = polynomial_attention(q, k, v, REBASED, normalize=normalize, backend=backend)
    products = lambda x: (x[..., :, None] * x[..., None, :]).flatten(-2) / x.shape[-1] ** 0.5  # noqa: E731
    torch.testing.assert_close(y, linear_attention_of(products, q, k, v, normalize))


@pytest.mark.parametrize("backend", BACKENDS)
def test_state_is_the_documented_sum(backend):
    q, k, v = qkv(9, 3, 2, dtype=torch.float32)
    _, state = polynomial_attention(q, k, v, normalize=True, backend=backend)
    a, b, c = k[0, :, 0].T
    features = torch.stack([torch.ones_like(a), a, b, c, a * a, a * b, a * c, b * b, b * c, c * c])
    with_ones = torch.cat([v[0, :, 0], torch.ones(9, 1)], dim=1)
    torch.testing.assert_close(state[0, 0], features @ with_ones)
    _, squares = polynomial_attention(q, k, v, REBASED, normalize=False, backend=backend)
    torch.testing.assert_close(squares[0, 0], features[4:] @ v[0, :, 0])


@pytest.mark.parametrize("coefficients, r", [(BASED, 153), (REBASED, 136), ((1, 1, 0), 17), ((2, 0, 0), 1)])
def test_state_has_exactly_the_symmetric_rows(coefficients, r):
    assert num_features(16, coefficients) == r
    _, state = polynomial_attention(*qkv(3, 16, 4), coefficients)
    assert state.shape == (1, 1, r, 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_coefficient_changes_the_result(backend):
    q, k, v = qkv(6, 4, 3, dtype=torch.float32)
    plain = polynomial_attention(q, k, v, (1.0, 1.0, 0.5), backend=backend)[0]
    for changed in ((2.0, 1.0, 0.5), (1.0, 2.0, 0.5), (1.0, 1.0, 1.0)):
        y = polynomial_attention(q, k, v, changed, backend=backend)[0]
        assert not torch.allclose(y[:, 1:], plain[:, 1:], rtol=1e-3)
    assert not torch.allclose(
        polynomial_attention(q, k, v, scale=1.0, backend=backend)[0][:, 1:], plain[:, 1:], rtol=1e-3
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_weights_are_the_mean_of_the_past(backend):
    q, k, v = qkv(12, 4, 3, dtype=torch.float32)
    y, _ = polynomial_attention(q, k, v, (3.0, 0.0, 0.0), backend=backend)
    torch.testing.assert_close(y, v.cumsum(1) / torch.arange(1, 13)[:, None, None])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", [False, True])
def test_steps_replay_the_whole(backend, normalize):
    q, k, v = qkv(7, 5, 4, h=2, dtype=torch.float32)
    y, state = polynomial_attention(q, k, v, normalize=normalize, backend=backend)
    steps, memory = [], None
    for now in range(7):
        token = (x[:, now : now + 1] for x in (q, k, v))
        step, memory = polynomial_attention(*token, normalize=normalize, state=memory, backend=backend)
        steps.append(step)
    torch.testing.assert_close(torch.cat(steps, dim=1), y)
    torch.testing.assert_close(memory, state)


def results(arguments: tuple, options: dict, backend: str) -> list[Tensor]:
    """y, the state after, and the gradients of a projection of both."""
    leaves = [x.clone().requires_grad_() for x in arguments]
    state = options.get("state")
    options = options | ({} if state is None else {"state": state.clone().requires_grad_()})
    y, after = polynomial_attention(*leaves, **options, backend=backend)
    loss = sum((x.double() * randn(*x.shape, seed=7)).sum() for x in (y, after))
    wanted = leaves if state is None else [*leaves, options["state"]]
    return [y, after, *torch.autograd.grad(loss, wanted)]


SEVERAL_SEGMENTS = {
    "from-zero": dict(t=135, k=5),
    "with-state": dict(t=101, k=17, state=True, normalize=False, coefficients=(0.5, 0.0, 1.0)),
    "packed": dict(t=140, k=4, state=True, cu_seqlens=(0, 70, 70, 72, 140)),
}


@pytest.mark.parametrize("name", SEVERAL_SEGMENTS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_several_segments_equal_the_reference(backend, name, monkeypatch):
    """Segments are made short, so that a short sequence has several of them; and few heads are cut into them."""
    monkeypatch.setattr(_target, "multiprocessors", lambda: 1000)
    monkeypatch.setattr(_triton, "segment_length", lambda r: 32)
    for constant, short in (("CHUNK", 16), ("ALWAYS_ONE_CHUNK", 16), ("SCORES", 2 * 16 * 16)):
        monkeypatch.setattr(_torch, constant, short)
    dims = dict(SEVERAL_SEGMENTS[name])
    t, k, has_state = dims.pop("t"), dims.pop("k"), dims.pop("state", False)
    options = {name: torch.tensor(x) if name == "cu_seqlens" else x for name, x in dims.items()}
    n = len(dims["cu_seqlens"]) - 1 if "cu_seqlens" in dims else 1
    if has_state:
        past = [x.expand(n, -1, -1, -1) for x in qkv(6, k, 3)]
        rest = {name: x for name, x in options.items() if name in ("coefficients", "normalize")}
        options["state"] = polynomial_attention(*past, **rest)[1]
    arguments = qkv(t, k, 3)
    exact = results(arguments, options, "reference")
    low = tuple(x.float() for x in arguments)
    if has_state:
        options["state"] = options["state"].float()
    rounded = results(low, options, "reference")
    for actual, e, r in zip(results(low, options, backend), exact, rounded, strict=True):
        assert_within_budget(actual, e, r, torch.float32, "polynomial_attention")


@pytest.mark.parametrize("k, t, coefficients", [(16, 700, BASED), (40, 1000, BASED), (130, 300, (0.0, 1.0, 1.0))])
def test_long_or_wide_inputs_equal_the_reference(k, t, coefficients):
    """The torch backend as it is cut in earnest: several chunks and segments, features in several tiles."""
    past = qkv(4, k, 3)
    state = polynomial_attention(*past, coefficients)[1]
    arguments, options = qkv(t, k, 3), {"coefficients": coefficients, "state": state}
    for actual, expected in zip(*(results(arguments, options, b) for b in ("torch", "reference")), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_large_scores_in_half_precision_stay_finite(backend):
    """Squared scores near 1e6 pass float16's largest number; the normalised result does not."""
    q, k, v = qkv(40, 16, 8, dtype=torch.float16)
    y, state = polynomial_attention(8 * q, 8 * k, v, scale=1.0, backend=backend)
    expected, _ = polynomial_attention(8 * q, 8 * k, v, scale=1.0, backend="reference")
    assert torch.isfinite(state).all()
    torch.testing.assert_close(y, expected, rtol=4e-3, atol=4e-3)


def test_bad_coefficients_are_refused():
    q, k, v = qkv(3, 4, 2)
    with pytest.raises(ValueError, match=r"coefficients must be three, \(c0, c1, c2\), got \(1.0, 1.0\)"):
        polynomial_attention(q, k, v, (1.0, 1.0))
    for bad in ((1.0, -1.0, 0.5), (0.0, 0.0, 0.0), (1.0, math.nan, 1.0), (1.0, math.inf, 1.0)):
        with pytest.raises(ValueError, match="coefficients must be finite, at least 0 and not all 0, got"):
            polynomial_attention(q, k, v, bad)


def test_a_state_of_other_options_is_refused():
    q, k, v = qkv(3, 4, 2)
    _, state = polynomial_attention(q, k, v, REBASED)
    with pytest.raises(
        ValueError, match=r"state has r=10, but the call has r=15; state must be \(n, h, r, v\+normalize\)"
    ):
        polynomial_attention(q, k, v, BASED, state=state)
    with pytest.raises(ValueError, match=r"state has v\+normalize=3, but the call has v\+normalize=2"):
        polynomial_attention(q, k, v, REBASED, normalize=False, state=state)
    with pytest.raises(ValueError, match="k has h=1, but q has h=2"):
        polynomial_attention(torch.cat([q, q], dim=2), k, v)


def assert_within_the_budget_of_the_reference(dims: dict, dtype: torch.dtype) -> None:
    """Results and gradients of the Triton kernels."""
    inputs = make_inputs("polynomial_attention", dims, dtype)
    exact, rounded = exact_and_rounded("polynomial_attention", inputs, dtype)
    found = dict(zip(("y", "state"), call("polynomial_attention", "triton", inputs), strict=True))
    found |= {f"d{name}": dx for name, dx in gradients("polynomial_attention", "triton", inputs).items()}
    for name, actual in found.items():
        assert_within_budget(actual, exact[name], rounded[name], dtype, name)


@pytest.mark.parametrize("name", [name for name in CASES if name != "wide-keys"])
def test_few_heads_are_cut_into_segments_and_give_the_same(name, monkeypatch):
    monkeypatch.setattr(_target, "multiprocessors", lambda: 1000)
    assert_within_the_budget_of_the_reference(CASES[name], torch.float32)


def configurations() -> list:
    """Each configuration in half precision whose tile sizes no earlier one has."""
    found = {}
    for table in (WALK, BWD_WALK):
        for (_, kind, _), config in table.rows.items():
            sizes = tuple(value for name, value in config.items() if name.startswith("BLOCK"))
            if kind != "float32":
                found.setdefault((table.name, sizes), config)
    return [pytest.param(name, config, id=f"{name}-{sizes}") for (name, sizes), config in found.items()]


@pytest.mark.parametrize("table, config", configurations())
def test_every_configuration_gives_the_same(table, config):
    with forced(table, config):
        assert_within_the_budget_of_the_reference(dict(b=1, t=70, h=1, k=13, v=40), torch.float16)


@pytest.mark.parametrize("name", [name for name in CASES if name != "wide-keys"])
def test_parts_of_v_give_what_all_of_it_gives(name):
    parts = dict(BLOCK_T=16, BLOCK_I=8, BLOCK_V=16, num_warps=4, num_stages=1)
    with forced(BWD_WALK.name, parts):
        assert_within_the_budget_of_the_reference(CASES[name] | dict(v=40), torch.float32)
