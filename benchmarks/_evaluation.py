"""An op evaluated forward and backward, and what came out beside what should have: for `check` and `tune`."""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from subquad.kernels._dispatch import HAS_TRITON

SEED = 0
SHARED = ("weight", "bias", "filter", "skip", "sinks", "A", "D")  # inputs that all rows of a batch share


@dataclass
class Finding:
    """What came out for one op, backend and dtype over all its cases.

    worst: the largest error in units of its budget, with both; it is of the tensor `name` in the case `where`.
    repeats: how often each case was run; `unequal` names those in which so many runs gave other bits than the first.
    skipped: cases that were not run, and why not.
    failure: what was raised, in `failed_case`; cases after it were not run.
    far: of cases beyond 2^31 elements.
    lost: the GPU can run nothing more in this process.
    """

    op: str
    backend: str
    dtype: torch.dtype
    num_cases: int = 0
    worst: float = 0.0
    name: str = ""
    where: str = ""
    error: float = 0.0
    budget: float = 0.0
    repeats: int = 1
    unequal: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failure: str = ""
    failed_case: str = ""
    far: bool = False
    lost: bool = False

    @property
    def passed(self) -> bool:
        return self.worst <= 1 and not self.unequal and not self.failure

    def note(self, name: str, where: str, error: float, budget: float) -> None:
        share = error / budget if budget else (math.inf if error else 0.0)
        if not self.where or share > self.worst:
            self.worst, self.error, self.budget = share, error, budget
            self.name, self.where = name, where

    def fail(self, case: str, error: BaseException) -> None:
        self.failed_case, self.failure = case, f"{type(error).__name__}: {error}"
        self.lost = isinstance(error, torch.AcceleratorError)


class Evaluation:
    """An op on some inputs, to be run as often as wanted.

    What flows back is random, and representable in the inputs' dtype so that float64 gets the same; or it is given.
    """

    def __init__(self, op: str, backend: str, inputs: dict, dtype: torch.dtype, outer: list[Tensor] | None = None):
        self._op, self._backend, self._dtype, self._outer = op, backend, dtype, outer
        self._leaves = {name: x.detach().requires_grad_() if is_real(x) else x for name, x in inputs.items()}

    def run(self) -> dict[str, Tensor]:
        """Results and gradients by name: y, the state, and dx for every floating input x."""
        result = op_function(self._op)(**self._leaves, backend=self._backend)
        results = result if isinstance(result, tuple) else (result,)
        if self._outer is None:
            self._outer = [x.to(y) for x, y in zip(draw_outer(results, self._dtype), results, strict=True)]
        real = {name: x for name, x in self._leaves.items() if is_real(x)}
        found = torch.autograd.grad(results, list(real.values()), self._outer, materialize_grads=True)
        named = dict(zip(("y", "state"), (y.detach() for y in results), strict=False))
        return named | {f"d{name}": dx for name, dx in zip(real, found, strict=True)}


def evaluate(op: str, backend: str, inputs: dict, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results and gradients of one run, see `Evaluation`."""
    return Evaluation(op, backend, inputs, dtype).run()


def draw_outer(results: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """What flows back into results of these shapes: the same for each backend."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype) for y in results]


def count_unequal(evaluation: Evaluation, first: dict[str, Tensor], repeats: int) -> int:
    """How many of the runs after the first gave other bits. They are compared on the device; only the count leaves."""
    count = torch.zeros((), dtype=torch.int64, device=first["y"].device)
    for _ in range(repeats - 1):
        again = evaluation.run()
        count += torch.stack([(bits(again[name]) != bits(x)).any() for name, x in first.items()]).any()
    return int(count)


def bits(x: Tensor) -> Tensor:
    """The same memory as whole numbers: equal where bits are, also where they mean NaN or a negative zero."""
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def op_function(op: str) -> Callable:
    return getattr(importlib.import_module(f"subquad.kernels.{op}"), op)


def draw_inputs(op: str, dtype: torch.dtype, **dims) -> dict:
    """The op's inputs of these sizes, floating ones in a dtype."""
    room = importlib.import_module(f"subquad.kernels.{op}._inputs")
    return cast(room.make_inputs(torch.Generator().manual_seed(SEED), **dims), dtype)


def cast(inputs: dict, to: torch.dtype | torch.device) -> dict:
    """Floating inputs to a dtype, or all tensors to a device."""
    fits = is_real if isinstance(to, torch.dtype) else lambda x: isinstance(x, Tensor)
    return {name: x.to(to) if fits(x) else x for name, x in inputs.items()}


def is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def is_real(x) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def backend_failures() -> tuple[type[Exception], ...]:
    """What a backend may raise on a device that it does not suit; one row fails then, and the others go on."""
    if not HAS_TRITON:
        return (RuntimeError,)
    from triton.errors import TritonError

    return RuntimeError, TritonError
