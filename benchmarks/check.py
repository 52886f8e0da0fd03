"""`subquad check`: every op on every backend of this machine against the reference, forward and backward."""

import importlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from rich.console import Console
from rich.progress import Progress

from subquad.kernels import OPS
from subquad.kernels._budget import error_and_budget, rounded_to_float64
from subquad.kernels._dispatch import HAS_TRITON, INTERPRET

from ._check_report import report
from ._evaluation import Evaluation, Finding, backend_failures, cast, count_unequal, draw_inputs, evaluate, is_gpu
from ._far_cases import FAR_CASES, check_far

REPEATS = 250  # runs of each case of our kernels on a GPU, which must agree to the last bit
DTYPES = {
    "torch": (torch.float64, torch.float32, torch.bfloat16, torch.float16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "interpreter": (torch.float32, torch.float16),  # the interpreter computes wrongly in bfloat16
}
FAR_DTYPE = torch.bfloat16  # of the cases beyond 2^31 elements: the least memory for them
MANY = 70_001  # more than the 65,535 programs that the second and third axis of a launch can have
GPU_CASES = {  # besides those of the ops, which are small: as many programs at once as a GPU runs, and more
    "causal_attention": {
        "busy": dict(b=2, t=500, h=16, g=4, k=64),
        "busy-window": dict(b=2, t=500, h=16, k=128, window=100, sinks=True),
        "busy-decode": dict(b=16, t=1, s=1000, h=16, g=4, k=64),
        "many-rows": dict(b=MANY, t=2, h=1, k=8),
        "many-heads": dict(b=1, t=2, h=MANY, k=8, sinks=True),
        "many-rows-decode": dict(b=MANY, t=1, s=3, h=1, k=8),
    },
    "linear_attention": {
        "busy": dict(b=4, t=200, h=16, k=64, v=64, decay="head"),
        "busy-channel": dict(b=4, t=200, h=16, k=64, v=64, decay="channel"),
        "busy-few": dict(b=1, t=1000, h=2, k=128, v=128),
        "many-rows": dict(b=MANY, t=2, h=1, k=8, v=8, decay="head"),
        "many-heads": dict(b=1, t=2, h=MANY, k=8, v=8, decay="channel"),
        "many-rows-decode": dict(b=MANY, t=1, h=1, k=8, v=8),
    },
    "polynomial_attention": {
        "busy": dict(b=4, t=200, h=16, k=16, v=64),
        "busy-few": dict(b=1, t=1000, h=2, k=16, v=64),
        "many-rows": dict(b=MANY, t=2, h=1, k=4, v=8),
        "many-heads": dict(b=1, t=2, h=MANY, k=4, v=8),
        "many-rows-decode": dict(b=MANY, t=1, h=1, k=4, v=8),
    },
    "delta_rule": {
        "busy": dict(b=4, t=200, h=16, k=64, v=64, decay="head"),
        "busy-plain": dict(b=4, t=200, h=16, k=128, v=128),
        "busy-channel": dict(b=4, t=200, h=16, k=64, v=64, decay="channel"),
        "many-rows": dict(b=MANY, t=2, h=1, k=8, v=8, decay="head"),
        "many-heads": dict(b=1, t=2, h=MANY, k=8, v=8, decay="channel"),
        "many-rows-decode": dict(b=MANY, t=1, h=1, k=8, v=8),
    },
    "generalized_delta_rule": {
        "busy": dict(b=4, t=200, h=16, k=64, v=64),
        "busy-wide": dict(b=2, t=200, h=16, k=128, v=128),
        "many-rows": dict(b=MANY, t=2, h=1, k=8, v=8),
        "many-heads": dict(b=1, t=2, h=MANY, k=8, v=8),
        "many-rows-decode": dict(b=MANY, t=1, h=1, k=8, v=8),
    },
    "selective_scan": {
        "busy": dict(b=4, t=200, d=2048, m=16),
        "busy-few": dict(b=1, t=4000, d=64, m=16),
        "many-rows": dict(b=MANY, t=2, d=4, m=2),
        "many-channels": dict(b=1, t=2, d=64 * MANY, m=2),
        "many-rows-decode": dict(b=MANY, t=1, d=4, m=2),
    },
    "linear_recurrence": {
        "busy": dict(b=4, t=200, d=8192),
        "busy-few": dict(b=1, t=4000, d=64),
        "many-rows": dict(b=MANY, t=2, d=4),
        "many-channels": dict(b=1, t=2, d=128 * MANY),
        "many-rows-decode": dict(b=MANY, t=1, d=4),
    },
    "short_conv": {
        "busy": dict(b=4, t=200, d=512, w=4, activation="silu"),
        "many-rows": dict(b=MANY, t=2, d=4, w=3),
        "many-channels": dict(b=1, t=2, d=128 * MANY, w=2),
    },
    "long_conv": {
        "busy": dict(b=2, t=300, d=512, l=300),
        "many-rows": dict(b=MANY, t=2, d=2, l=2),
        "many-channels": dict(b=1, t=2, d=8 * MANY, l=2),
    },
}


def run_check(ops: tuple[str, ...] = OPS, device: str = "auto", case: str = "") -> int:
    """Check the ops on a device.

    Prints a report in markdown. On a GPU there are also cases that fill it, launches of more than 65,535 programs and
    tensors of more than 2^31 elements; and each case of our kernels is run REPEATS times and must give the same bits.

    Args:
        ops: names from OPS.
        device: "auto" (the GPU if there is one), "cpu", "cuda" or "cuda:1".
        case: only the one of this name, as the report names it; all if empty.

    Returns:
        0 if everything is within its budget, else 1: an exit code.

    Raises:
        ValueError: an unknown op or case, or a device that is not there.
    """
    for op in ops:
        if op not in OPS:
            raise ValueError(f"check: unknown op {op!r}; expected some of {', '.join(OPS)}")
    return _check(ops, _device(device), case)


def cases_of(op: str, backend: str, device: torch.device) -> dict[str, dict]:
    """Sizes of the op's own cases; for our kernels on a GPU also of those that fill one."""
    own = importlib.import_module(f"subquad.kernels.{op}._inputs").CASES
    return own | GPU_CASES[op] if is_gpu(device) and backend == "triton" else own


def check_op(
    op: str,
    backend: str,
    dtype: torch.dtype,
    device: torch.device,
    case: str = "",
    on_case: Callable[[str], None] = lambda name: None,
) -> Finding:
    """Run the cases of an op. `backend` is a key of DTYPES; what is right is computed on the CPU."""
    finding = Finding(op, backend, dtype)
    if is_gpu(device) and backend == "triton":
        finding.repeats = REPEATS
    for name, dims in cases_of(op, backend, device).items():
        if case in ("", name):
            on_case(name)
            try:
                _check_case(finding, name, draw_inputs(op, dtype, **dims), device)
            except torch.OutOfMemoryError as error:
                finding.skipped[name] = f"out of memory: {error}".partition("\n")[0]
                continue
            except backend_failures() as error:
                finding.fail(name, error)
                break
            finding.num_cases += 1
    return finding


def _check_case(finding: Finding, case: str, inputs: dict, device: torch.device) -> None:
    op, dtype = finding.op, finding.dtype
    backend = "triton" if finding.backend == "interpreter" else finding.backend
    evaluation = Evaluation(op, backend, cast(inputs, device), dtype)
    found = evaluation.run()
    unequal = count_unequal(evaluation, found, finding.repeats)
    if unequal:
        finding.unequal[case] = unequal
    exact = evaluate(op, "reference", cast(inputs, torch.float64), dtype)
    if dtype == torch.float64:
        single = evaluate(op, "reference", cast(inputs, torch.float32), torch.float32)
        rounded = {name: rounded_to_float64(x, single[name]) for name, x in exact.items()}
    else:
        rounded = evaluate(op, "reference", inputs, dtype)
    eps = torch.finfo(dtype).eps
    for name, actual in found.items():
        finding.note(name, case, *error_and_budget(actual.cpu(), exact[name], rounded[name], eps))


def _check(ops: tuple[str, ...], device: torch.device, case: str) -> int:
    _need_case(ops, device, case)
    console = Console()
    with Progress(console=console, transient=True) as progress:
        findings = list(_findings(ops, device, case, progress))
    console.print(report(ops, findings, device), markup=False, highlight=False, soft_wrap=True)
    return int(any(not finding.passed for finding in findings))


def _findings(ops: tuple[str, ...], device: torch.device, case: str, progress: Progress) -> Iterator[Finding]:
    """The cases of each op, then those that may take the GPU's memory or break it. Without a GPU nothing goes on."""
    parts = [(check_op, op, backend, dtype) for op in ops for backend in _backends(device) for dtype in DTYPES[backend]]
    if is_gpu(device) and HAS_TRITON:
        parts += [(check_far, op, "triton", FAR_DTYPE) for op in ops]
    lost = ""
    task = progress.add_task("checking", total=len(parts))
    for check, *part in parts:
        show = partial(_show, progress, task, *part)
        finding = (
            Finding(*part, failure=lost, far=check is check_far) if lost else check(*part, device, case, on_case=show)
        )
        if finding.lost:
            lost = f"not run, since the GPU was lost in {finding.op}, {finding.backend}, {finding.failed_case}"
        progress.advance(task)
        if finding.num_cases or finding.skipped or finding.failure:
            yield finding


def _show(progress: Progress, task, op: str, backend: str, dtype: torch.dtype, case: str) -> None:
    progress.update(task, description=f"{op}, {backend}, {str(dtype).removeprefix('torch.')}: {case}")


def _need_case(ops: tuple[str, ...], device: torch.device, case: str) -> None:
    known = [name for op in ops for name in (*cases_of(op, "triton", device), *FAR_CASES[op])]
    if case and case not in known:
        raise ValueError(f"check: no case {case!r}; expected one of {', '.join(dict.fromkeys(known))}")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"check: device {name!r} is not there; PyTorch sees no GPU. Use 'cpu' or 'auto'")
    return device


def _backends(device: torch.device) -> list[str]:
    if is_gpu(device):
        return ["torch", "triton"] if HAS_TRITON else ["torch"]
    return ["torch", "interpreter"] if INTERPRET else ["torch"]
