"""The contract every op keeps on every backend. Laws of a single op live in test_<op>.py."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from subquad.kernels import OPS, explain

from .contract import (
    assert_within_budget,
    axes,
    call,
    cases,
    cases_by_backend,
    cases_by_backend_and_dtype,
    cast,
    exact_and_rounded,
    function,
    gradients,
    is_real,
    make_inputs,
    over_budget,
    project,
)

RESULTS = ("y", "state")


@pytest.mark.parametrize("op, dims, backend, dtype", cases_by_backend_and_dtype())
def test_forward_matches_reference(op, dims, backend, dtype):
    low = make_inputs(op, dims, dtype)
    exact, rounded = exact_and_rounded(op, low, dtype)
    actual = call(op, backend, low)
    for which, a in zip(RESULTS, actual, strict=False):
        assert_within_budget(a, exact[which], rounded[which], dtype, f"{op}.{which}")
    assert actual[0].dtype == dtype
    assert all(state.dtype == torch.promote_types(dtype, torch.float32) for state in actual[1:])


@pytest.mark.parametrize("op, dims, backend, dtype", cases_by_backend_and_dtype())
def test_gradients_match_reference(op, dims, backend, dtype):
    low = make_inputs(op, dims, dtype)
    exact, rounded = exact_and_rounded(op, low, dtype)
    for name, actual in gradients(op, backend, low).items():
        assert_within_budget(actual, exact[f"d{name}"], rounded[f"d{name}"], dtype, f"{op}.d{name}")


@pytest.mark.parametrize("op, dims", cases())
def test_a_zero_result_would_fail(op, dims):
    inputs = make_inputs(op, dims, torch.float32)
    exact, rounded = call(op, "reference", cast(inputs, torch.float64)), call(op, "reference", inputs)
    assert over_budget(torch.zeros_like(rounded[0]), exact[0], rounded[0], torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("op", OPS)
def test_reference_passes_gradcheck(op):
    for case in cases():
        if case.values[0] != op:
            continue
        inputs = make_inputs(op, case.values[1])
        if sum(x.numel() for x in inputs.values() if is_real(x)) > 1000:
            continue
        leaves = {name: x.requires_grad_() for name, x in inputs.items() if is_real(x)}
        assert torch.autograd.gradcheck(
            lambda *xs, names=tuple(leaves), rest=inputs: call(
                op, "reference", rest | dict(zip(names, xs, strict=True))
            ),
            tuple(leaves.values()),
            fast_mode=True,
        )


@pytest.mark.parametrize("op, dims, backend", cases_by_backend())
def test_future_does_not_reach_past(op, dims, backend):
    inputs = make_inputs(op, dims, torch.float32)
    t = call(op, backend, inputs)[0].shape[1]
    cut = t // 2 + 1  # no multiple of any chunk
    changed = {}
    for name, x in inputs.items():
        letters = axes(op, name) if is_real(x) else []
        axis = next((letter for letter in letters if letter in "ts"), None)
        if axis is None or letters[0] != "b":
            changed[name] = x
            continue
        past = cut + x.shape[1] - t  # keys may begin before the queries; both end together
        future = x[:, past:].flip(1) / 2  # in the domain of every argument
        changed[name] = torch.cat([x[:, :past], future], dim=1)
    before, after = call(op, backend, inputs)[0], call(op, backend, changed)[0]
    limit = 16 * torch.finfo(torch.float32).eps * before.abs().max()  # a Fourier transform rounds globally
    assert (before[:, :cut] - after[:, :cut]).abs().max() <= limit
    assert t == cut or not torch.equal(before[:, cut:], after[:, cut:])


@pytest.mark.parametrize("op, dims, backend", cases_by_backend())
def test_halves_with_state_equal_whole(op, dims, backend):
    inputs = make_inputs(op, dims, torch.float32)
    results = call(op, backend, inputs)
    t = results[0].shape[1]
    if len(results) == 1 or "cu_seqlens" in inputs or t < 3:
        return  # the law speaks of ops with a state; packed sequences have borders of their own
    cut = t // 2 + 1

    def run(leaves, split):
        if not split:
            return call(op, backend, leaves)
        timed = {name for name, x in leaves.items() if is_real(x) and "t" in axes(op, name)}
        first, second = (
            {n: x[:, part] if n in timed else x for n, x in leaves.items()} for part in (slice(cut), slice(cut, None))
        )
        y1, state = call(op, backend, first)
        y2, state = call(op, backend, second | {"state": state})
        return torch.cat([y1, y2], dim=1), state

    found = []
    for split in (False, True):
        leaves = {name: x.clone().requires_grad_() if is_real(x) else x for name, x in inputs.items()}
        results = run(leaves, split)
        real = [x for x in leaves.values() if is_real(x)]
        found.append([*results, *torch.autograd.grad(project(results), real, materialize_grads=True)])
    for whole, halves in zip(*found, strict=True):
        assert_within_budget(halves, whole.double(), whole, torch.float32, op)


def _in_poisoned_surroundings(x: torch.Tensor) -> torch.Tensor:
    """The same values as a slice of a larger tensor whose other elements are NaN: reading past an edge is seen."""
    around = x.new_full([size + 2 for size in x.shape], float("nan"))
    inside = around[tuple(slice(1, -1) for _ in x.shape)]
    return inside.copy_(x)


def _last_axis_strided(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


@pytest.mark.parametrize("op, dims, backend", cases_by_backend())
@pytest.mark.parametrize("lay_out", [_in_poisoned_surroundings, _last_axis_strided])
def test_any_strides(op, dims, backend, lay_out):
    inputs = make_inputs(op, dims, torch.float32)
    leaves = {n: lay_out(x) if is_real(x) else x for n, x in inputs.items()}
    for x in leaves.values():
        if is_real(x):
            x.requires_grad_()
    results = call(op, backend, leaves)
    found = torch.autograd.grad(project(results), [x for x in leaves.values() if is_real(x)], materialize_grads=True)
    exact, rounded = exact_and_rounded(op, inputs, torch.float32)
    for name, actual in zip(exact, (*results, *found), strict=True):
        assert_within_budget(actual, exact[name], rounded[name], torch.float32, f"{op}.{name}")


class _Operators(TorchDispatchMode):
    """Notes every subquad operator that runs: its last arguments, and all results."""

    def __init__(self):
        super().__init__()
        self.seen, self.results = {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "subquad":
            self.seen[func] = args
            self.results += [x for x in result if x is not None]
        return result


@pytest.mark.parametrize("op, dims, backend", cases_by_backend())
def test_fresh_memory_may_hold_anything(op, dims, backend, poisoned_memory):
    inputs = make_inputs(op, dims, torch.float32)
    with _Operators() as operators:
        found = (*call(op, backend, inputs), *gradients(op, backend, inputs).values())
    assert all(torch.isfinite(x).all() for x in found)
    # What an operator keeps for its backward pass counts too: unwritten, it would differ from run to run.
    assert not any(x.isnan().any() for x in operators.results)


@pytest.mark.parametrize("op, dims, backend", cases_by_backend())
def test_inputs_stay_and_outputs_are_new(op, dims, backend):
    inputs = make_inputs(op, dims, torch.float32)
    before = {name: x.clone() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    results = call(op, backend, inputs)
    places = {x.untyped_storage().data_ptr() for x in inputs.values() if isinstance(x, torch.Tensor)}
    for result in results:
        assert result.numel() == 0 or result.untyped_storage().data_ptr() not in places
    gradients(op, backend, inputs)
    for name, x in before.items():
        assert torch.equal(x, inputs[name]) if isinstance(x, torch.Tensor) else x == inputs[name]


@pytest.mark.parametrize("op, dims, backend", cases_by_backend())
def test_operators_pass_opcheck(op, dims, backend):
    with _Operators() as operators:
        gradients(op, backend, make_inputs(op, dims, torch.float32))
    assert len(operators.seen) == 2, f"{op}: expected a forward and a backward operator, saw {list(operators.seen)}"
    for operator, args in operators.seen.items():
        if operator.name().endswith("_backward"):  # it is not differentiable again, so its inputs carry no gradient
            torch.library.opcheck(operator, args, test_utils=("test_schema", "test_faketensor"))
        else:
            leaves = [x.detach().clone().requires_grad_() if is_real(x) else x for x in args]
            torch.library.opcheck(operator, leaves)


@pytest.mark.parametrize("op, dims, backend", cases_by_backend())
def test_compiles_without_graph_break(op, dims, backend):
    inputs = make_inputs(op, dims, torch.float32)
    torch._dynamo.reset()  # each case is a compilation of its own, not a recompilation of the last
    compiled = torch.compile(function(op), fullgraph=True, backend="aot_eager")
    leaves = {name: x.clone().requires_grad_() if is_real(x) else x for name, x in inputs.items()}
    result = compiled(**leaves, backend=backend)
    results = result if isinstance(result, tuple) else (result,)
    real = [x for x in leaves.values() if is_real(x)]
    found = torch.autograd.grad(project(results), real, materialize_grads=True)
    for actual, expected in zip(results, call(op, backend, inputs), strict=True):
        torch.testing.assert_close(actual, expected)
    for actual, expected in zip(found, gradients(op, backend, inputs).values(), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("op, dims", cases())
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_autocast_computes_in_half_and_returns_float_gradients(op, dims, backend):
    inputs = make_inputs(op, dims, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(op, backend, inputs)[0].dtype == torch.bfloat16
        found = gradients(op, backend, inputs)
    assert all(dx.dtype == torch.float32 and torch.isfinite(dx).all() for dx in found.values())


@pytest.mark.parametrize("op", OPS)
def test_autocast_leaves_the_reference_its_precision(op):
    dims = next(case.values[1] for case in cases() if case.values[0] == op)
    inputs = make_inputs(op, dims, torch.float32)
    inputs = {name: x.bfloat16().float() if is_real(x) else x for name, x in inputs.items()}
    expected = call(op, "reference", inputs)[0].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(op, "reference", inputs)[0], expected)


@pytest.mark.parametrize("op", OPS)
def test_bad_calls_say_what_is_wrong(op):
    dims = next(case.values[1] for case in cases() if case.values[0] == op)
    inputs = make_inputs(op, dims, torch.float32)
    first, second = [name for name, x in inputs.items() if is_real(x)][:2]
    with pytest.raises(
        ValueError, match=rf"{op}: unknown backend 'cuda'; expected one of auto, triton, torch, reference"
    ):
        call(op, "cuda", inputs)
    refusal = "(dtypes do not mix, expected one dtype|gates, biases and states must be float32 beside torch.float32)"
    with pytest.raises(ValueError, match=rf"{op}: {refusal}, got .*float16.*"):
        call(op, "auto", inputs | {second: inputs[second].half()})
    with pytest.raises(ValueError, match=rf"{op}: {first} must be \(b, t, .*\), got shape"):
        call(op, "auto", inputs | {first: inputs[first][0]})
    with pytest.raises(ValueError, match=rf"{op}: {first} has t=0, every axis needs at least one element"):
        call(op, "auto", inputs | {first: inputs[first][:, :0]})
    with pytest.raises(ValueError, match=f"{op}: expected float16, bfloat16, float32 or float64, got torch.int64"):
        call(op, "auto", {name: x.long() if is_real(x) else x for name, x in inputs.items()})


@pytest.mark.parametrize("op", OPS)
def test_explain_names_the_backend_and_the_reasons(op):
    x = torch.zeros(1, 4, 2, 16)
    assert explain(op, x).startswith(f"{op}: 'auto' runs 'torch'")
    assert "float32 or narrower" in explain(op, x.double())
    assert "head dims of at most 256" in explain(op, torch.zeros(1, 4, 2, 300))
