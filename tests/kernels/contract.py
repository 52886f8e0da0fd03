"""What the tests of all ops share: cases, calls by name, and the budget of an error."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from subquad.kernels import OPS

BACKENDS = ("torch", "triton")
DTYPES = {  # Triton's interpreter computes wrongly in bfloat16; there it is covered by the ahead-of-time compiler
    "torch": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.float16),
}


def room(op: str):
    return importlib.import_module(f"subquad.kernels.{op}._inputs")


def cases():
    for op in OPS:
        for name, dims in room(op).CASES.items():
            yield pytest.param(op, dims, id=f"{op}-{name}")


def cases_by_backend():
    for case in cases():
        for backend in BACKENDS:
            yield pytest.param(*case.values, backend, id=f"{case.id}-{backend}")


def cases_by_backend_and_dtype():
    for case in cases():
        for backend in BACKENDS:
            for dtype in DTYPES[backend]:
                short = str(dtype).removeprefix("torch.")
                yield pytest.param(*case.values, backend, dtype, id=f"{case.id}-{backend}-{short}")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_inputs(op: str, dims: dict, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict:
    return cast(room(op).make_inputs(seeded(seed), **dims), dtype)


def is_real(x) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def cast(inputs: dict, dtype: torch.dtype) -> dict:
    return {name: x.to(dtype) if is_real(x) else x for name, x in inputs.items()}


def front_door(op: str):
    return importlib.import_module(f"subquad.kernels.{op}")


def axes(op: str, name: str) -> list[str]:
    return front_door(op).SHAPES[name].split()


def function(op: str) -> Callable:
    return getattr(front_door(op), op)


def call(op: str, backend: str, inputs: dict) -> tuple[Tensor, ...]:
    """The op's results as a tuple: (y,) or (y, state)."""
    result = function(op)(**inputs, backend=backend)
    return result if isinstance(result, tuple) else (result,)


def project(results: tuple[Tensor, ...]) -> Tensor:
    """A fixed random projection of all results: its gradient reaches every element."""
    probe = seeded(1)
    return sum((y.double() * torch.randn(y.shape, generator=probe, dtype=torch.float64)).sum() for y in results)


def gradients(op: str, backend: str, inputs: dict) -> dict[str, Tensor]:
    """Gradient of a fixed projection of every result with respect to every floating input."""
    leaves = {name: x.detach().clone().requires_grad_() if is_real(x) else x for name, x in inputs.items()}
    real = {name: x for name, x in leaves.items() if is_real(x)}
    loss = project(call(op, backend, leaves))
    return dict(zip(real, torch.autograd.grad(loss, list(real.values()), materialize_grads=True), strict=True))


def over_budget(actual: Tensor, exact: Tensor, rounded: Tensor, eps: float) -> str | None:
    """`actual` may err at most twice as much as the reference does when rounded to the same dtype; else say how much."""
    if actual.shape != exact.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    if not torch.isfinite(actual).all():
        return "not finite"
    if exact.numel() == 0:
        return None
    error, own = ((x.double() - exact).abs().max().item() for x in (actual, rounded))
    budget = 2 * own + 16 * eps * exact.abs().max().item()
    return None if error <= budget else f"error {error:.2e} is over the budget {budget:.2e}"


def assert_within_budget(actual: Tensor, exact: Tensor, rounded: Tensor, dtype: torch.dtype, name: str) -> None:
    complaint = over_budget(actual, exact, rounded, torch.finfo(dtype).eps)
    assert complaint is None, f"{name}: {complaint}"
