"""What the tests of all ops share: cases, calls by name, and the budget of an error."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from subquad.kernels import OPS
from subquad.kernels._budget import over_budget, rounded_to_float64

BACKENDS = ("torch", "triton")
DTYPES = {  # Triton's interpreter computes wrongly in bfloat16; there it is covered by the ahead-of-time compiler
    "torch": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.float16),
}
# Values of log_decay, each a kind of trouble: nothing fades, everything does at once, or both side by side.
GATES = {
    "zero": (0.0,),
    "slow": (-1e-4,),
    "one": (-1.0,),
    "fast": (-20.0,),
    "faster": (-100.0,),
    "mixed": (0.0, -1e-4, -1.0, -20.0, -100.0),
    "rare": (0.0,) * 30 + (-100.0,),
}


def room(op: str):
    return importlib.import_module(f"subquad.kernels.{op}._inputs")


def cases() -> list:
    return [pytest.param(op, dims, id=f"{op}-{name}") for op in OPS for name, dims in room(op).CASES.items()]


def cases_by_backend() -> list:
    return [pytest.param(*case.values, backend, id=f"{case.id}-{backend}") for case in cases() for backend in BACKENDS]


def cases_by_backend_and_dtype() -> list:
    return [
        pytest.param(*case.values, dtype, id=f"{case.id}-{str(dtype).removeprefix('torch.')}")
        for case in cases_by_backend()
        for dtype in DTYPES[case.values[-1]]
    ]


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


def exact_and_rounded(op: str, low: dict, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Results and gradients of the reference by name, in float64 and in the dtype of the inputs."""

    def of(inputs: dict) -> dict[str, Tensor]:
        named = dict(zip(("y", "state"), call(op, "reference", inputs), strict=False))
        return named | {f"d{name}": dx for name, dx in gradients(op, "reference", inputs).items()}

    exact = of(cast(low, torch.float64))
    if dtype == torch.float64:
        single = of(cast(low, torch.float32))
        return exact, {name: rounded_to_float64(x, single[name]) for name, x in exact.items()}
    return exact, of(low)


def assert_within_budget(actual: Tensor, exact: Tensor, rounded: Tensor, dtype: torch.dtype, name: str) -> None:
    """Within the rule of `subquad.kernels._budget`."""
    complaint = over_budget(actual, exact, rounded, torch.finfo(dtype).eps)
    assert complaint is None, f"{name}: {complaint}"


def assert_all_within_budget(op: str, backend: str, low: dict) -> None:
    """Results and gradients. Below the smallest normal float32 there is no relative precision to hold anyone to."""

    def flushed(x: Tensor) -> Tensor:
        return x.where(x.abs() >= torch.finfo(torch.float32).tiny, 0)

    def found(backend: str, inputs: dict) -> dict[str, Tensor]:
        results = dict(zip(("y", "state"), call(op, backend, inputs), strict=True))
        return results | {f"d{name}": x for name, x in gradients(op, backend, inputs).items()}

    dtype = next(x.dtype for x in low.values() if is_real(x))
    exact, rounded = found("reference", cast(low, torch.float64)), found("reference", low)
    for name, x in found(backend, low).items():
        assert_within_budget(*(flushed(z) for z in (x, exact[name], rounded[name])), dtype, f"{op}.{name}")
