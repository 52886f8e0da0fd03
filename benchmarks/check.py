"""`subquad check`: every op on every backend of this machine against the reference, forward and backward."""

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from subquad.kernels import OPS
from subquad.kernels._budget import error_and_budget
from subquad.kernels._dispatch import HAS_TRITON, INTERPRET

from .records import environment

SEED = 0
REPEATS = 3  # runs on a GPU that must agree to the last bit
DTYPES = {
    "torch": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "interpreter": (torch.float32, torch.float16),  # the interpreter computes wrongly in bfloat16
}


@dataclass
class Finding:
    """What came out for one op, backend and dtype over all its cases."""

    op: str
    backend: str
    dtype: torch.dtype
    num_cases: int = 0
    worst: float = 0.0  # error in units of the budget
    where: str = ""
    error: float = 0.0
    budget: float = 0.0
    unequal: int = 0  # cases in which a repeated run gave other bits
    failure: str = ""

    @property
    def passed(self) -> bool:
        return self.worst <= 1 and not self.unequal and not self.failure

    def note(self, where: str, error: float, budget: float) -> None:
        share = error / budget if budget else (math.inf if error else 0.0)
        if not self.where or share > self.worst:
            self.worst, self.where, self.error, self.budget = share, where, error, budget


def run_check(ops: tuple[str, ...] = OPS, device: str = "auto") -> int:
    """Check the ops on a device.

    Prints a table; on a GPU each case is also run again and must give the same bits.

    Args:
        ops: names from OPS.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:1".

    Returns:
        0 if everything is within its budget, else 1: an exit code.

    Raises:
        ValueError: an unknown op, or a device that is not there.
    """
    for op in ops:
        if op not in OPS:
            raise ValueError(f"check: unknown op {op!r}; expected some of {', '.join(OPS)}")
    return _check(ops, _device(device))


def check_op(op: str, backend: str, dtype: torch.dtype, device: torch.device) -> Finding:
    """Run all cases of an op. `backend` is a key of DTYPES; what is right is computed on the CPU."""
    finding = Finding(op, backend, dtype)
    room = importlib.import_module(f"subquad.kernels.{op}._inputs")
    try:
        for name, dims in room.CASES.items():
            inputs = room.make_inputs(torch.Generator().manual_seed(SEED), **dims)
            _check_case(finding, name, {key: _cast(x, dtype) for key, x in inputs.items()}, device)
            finding.num_cases += 1
    except backend_failures() as failure:
        finding.failure = f"{name}: {type(failure).__name__}: {failure}"
    return finding


def _check_case(finding: Finding, case: str, inputs: dict, device: torch.device) -> None:
    backend = "triton" if finding.backend == "interpreter" else finding.backend
    here = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
    exactly = {name: _cast(x, torch.float64) for name, x in inputs.items()}
    found = evaluate(finding.op, backend, here, finding.dtype)
    rounded = evaluate(finding.op, "reference", inputs, finding.dtype)
    exact = evaluate(finding.op, "reference", exactly, finding.dtype)
    eps = torch.finfo(finding.dtype).eps
    for name, actual in found.items():
        finding.note(f"{name}, {case}", *error_and_budget(actual.cpu(), exact[name], rounded[name], eps))
    if device.type == "cuda":
        again = [evaluate(finding.op, backend, here, finding.dtype) for _ in range(REPEATS - 1)]
        finding.unequal += any(not torch.equal(run[name], x) for run in again for name, x in found.items())


def op_function(op: str) -> Callable:
    return getattr(importlib.import_module(f"subquad.kernels.{op}"), op)


def bits(x: Tensor) -> Tensor:
    """The same memory as whole numbers: equal where bits are, also where they mean NaN or a negative zero."""
    return x.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def evaluate(op: str, backend: str, inputs: dict, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results and gradients by name: y, the state, and dx for every floating input x.

    What flows back is random, and representable in `dtype` so that float64 gets the same.
    """
    leaves = {name: x.detach().clone().requires_grad_() if _is_real(x) else x for name, x in inputs.items()}
    result = op_function(op)(**leaves, backend=backend)
    results = result if isinstance(result, tuple) else (result,)
    generator = torch.Generator().manual_seed(SEED + 1)
    outer = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype).to(y) for y in results]
    real = {name: x for name, x in leaves.items() if _is_real(x)}
    found = torch.autograd.grad(results, list(real.values()), outer, materialize_grads=True)
    named = dict(zip(("y", "state"), (y.detach() for y in results), strict=False))
    return named | {f"d{name}": dx for name, dx in zip(real, found, strict=True)}


def _check(ops: tuple[str, ...], device: torch.device) -> int:
    console = Console()
    parts = [(op, backend, dtype) for op in ops for backend in _backends(device) for dtype in DTYPES[backend]]
    with Progress(console=console, transient=True) as progress:
        findings = [check_op(*part, device) for part in progress.track(parts, description="checking")]
    for op in ops:
        console.print(_table(op, [finding for finding in findings if finding.op == op], device))
    for line in _circumstances(device):
        console.print(line, highlight=False, soft_wrap=True)
    for finding in findings:
        if finding.failure:
            console.print(f"{finding.op}, {finding.backend}, {finding.dtype}: {finding.failure}", markup=False)
    failed = sum(not finding.passed for finding in findings)
    console.print(f"{failed} of {len(findings)} rows are over their budget" if failed else "everything within budget")
    return int(failed > 0)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"check: device {name!r} is not there; PyTorch sees no GPU. Use 'cpu' or 'auto'")
    return device


def _backends(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return ["torch", "triton"] if HAS_TRITON else ["torch"]
    return ["torch", "interpreter"] if INTERPRET else ["torch"]


def backend_failures() -> tuple[type[Exception], ...]:
    """What a backend may raise on a device that it does not suit; one row fails then, and the others go on."""
    if not HAS_TRITON:
        return (RuntimeError,)
    from triton.errors import TritonError

    return RuntimeError, TritonError


def _is_real(x) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _cast(x, dtype: torch.dtype):
    return x.to(dtype) if _is_real(x) else x


def _table(op: str, findings: list[Finding], device: torch.device) -> Table:
    num_cases = max(finding.num_cases for finding in findings)
    title = f"{op}, forward and backward; cases: {num_cases}"
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    repeats = ["repeats"] if device.type == "cuda" else []
    for column in ("backend", "dtype", "error", "budget", "worst in", *repeats, "verdict"):
        table.add_column(column, no_wrap=column != "worst in")
    for x in findings:
        cells = [x.backend, str(x.dtype).removeprefix("torch."), f"{x.error:.1e}", f"{x.budget:.1e}", x.where]
        if repeats:
            cells.append(f"{x.unequal} differ" if x.unequal else "equal")
        verdict = "FAILS" if x.failure else "OVER" if x.worst > 1 else "DIFFERS" if x.unequal else "ok"
        table.add_row(*cells, verdict, style=None if x.passed else "red")
    return table


def _circumstances(device: torch.device) -> Iterator[str]:
    """What belongs in a report of a failure."""
    facts = environment(device, SEED)
    for title in ("machine", "versions"):
        yield f"{title}: " + ", ".join(f"{name} {value}" for name, value in facts[title].items() if value is not None)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        software = f"CUDA {torch.version.cuda}, HIP {torch.version.hip}"
        yield f"device: {device}, compute capability {major}.{minor}, {software}"
    yield f"commit: {facts['commit']}"
