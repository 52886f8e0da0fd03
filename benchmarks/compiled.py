"""Every Triton kernel compiled for GPUs that are not there: registers, spills and shared memory, read from the code.

Ops run on CPU tensors while a driver that owns no device answers for the target. Triton itself binds and specialises
the arguments of each launch; a hook takes them down and stops it there. Then each distinct launch is compiled.
"""

import ast
import hashlib
import importlib
import io
import json
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.runtime.errors import TritonError

from subquad.kernels import OPS, _dispatch

from ._compiled_cases import Case, cases
from ._without_device import TARGETS, DriverWithoutDevice, cpu_tensors_reach_triton, driven_by, sizes_of
from .profile.calls import DTYPES, STAY_FLOAT32

DEFAULT_TARGETS = ("cuda:80", "cuda:90", "gfx942")
SHARED_LIMIT = {"cuda": 99 * 1024, "hip": 64 * 1024}  # bytes a block: the smallest of the supported generations


@dataclass(frozen=True)
class CompiledKernel:
    """One launch, compiled for one target. Sizes are in bytes; spills are those of one thread.

    `launch` counts the launches of the same kernel in the same case that differ in a constant, from 1.
    """

    op: str
    kernel: str
    case: str
    width: int
    launch: int
    dtype: str
    target: str
    num_warps: int
    num_stages: int
    registers: int
    spill: int
    shared: int
    error: str | None
    triton: str
    source: str

    @property
    def over_limit(self) -> bool:
        return self.shared > SHARED_LIMIT[TARGETS[self.target].backend]

    @property
    def failed(self) -> bool:
        return self.error is not None or self.over_limit


@dataclass(frozen=True)
class Launch:
    """A kernel and what its launch made constant, in Triton's own serial form."""

    function: triton.runtime.JITFunction
    specialization: str
    case: Case
    number: int


def compile_all(
    ops: tuple[str, ...] = OPS,
    targets: tuple[str, ...] = DEFAULT_TARGETS,
    dtypes: tuple[str, ...] = DTYPES,
    widths: tuple[int, ...] | None = None,
    processes: int = 2,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> list[CompiledKernel]:
    """Compile every kernel that the cases of `ops` launch, forward and backward.

    Args:
        ops, targets, dtypes: what to compile; see OPS, TARGETS and DTYPES.
        widths: width classes (`_compiled_cases.WIDTHS`), all if None.
        processes: how many compile at the same time.
        on_part: called with (finished, all) parts of the work.

    Raises:
        ValueError: an unknown name, or a process whose kernels Triton interprets.
    """
    _check_names(ops, targets, dtypes)
    parts = [(op, target, dtype, widths) for op in ops for target in targets for dtype in dtypes]
    context = multiprocessing.get_context("spawn")  # Triton's compiler has threads, which a fork would break
    found = []
    # A process for each part: what one part has compiled, the next would try to launch.
    with ProcessPoolExecutor(min(processes, len(parts)), mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(compile_part, *part) for part in parts]
        for done, future in enumerate(as_completed(futures), start=1):
            found += future.result()
            on_part(done, len(parts))
    return sorted(found, key=lambda x: (OPS.index(x.op), x.width, x.case, x.kernel, x.dtype, x.target))


def compile_part(op: str, target: str, dtype: str, widths: tuple[int, ...] | None) -> list[CompiledKernel]:
    """All kernels of an op for one target and dtype. A launch that several cases share is compiled once.

    Triton takes the process for one with such a GPU from then on, so `compile_all` gives each part to another process.
    """
    version = fingerprint(op)
    with tempfile.TemporaryDirectory() as cache, _driver(target, cache):
        seen, launches = set(), []
        for case in cases(op, dtype):
            if widths is None or case.width in widths:
                anew = [x for x in collect(op, case, getattr(torch, dtype)) if x.specialization not in seen]
                seen.update(x.specialization for x in anew)
                launches += anew
        return [_compile(launch, op, dtype, target, version) for launch in launches]


def collect(op: str, case: Case, dtype: torch.dtype) -> list[Launch]:
    """What one call of the op, and its backward pass unless it decodes, would launch."""
    launches, counts = {}, Counter()

    def take_down(*, fn, compile, **_) -> bool:
        specialization = compile["specialization_data"]
        if specialization not in launches:
            counts[fn.jit_function] += 1
            launches[specialization] = Launch(fn.jit_function, specialization, case, counts[fn.jit_function])
        return True  # Triton neither compiles nor launches

    function = getattr(importlib.import_module(f"subquad.kernels.{op}"), op)
    inputs = _leaves(op, case, dtype)
    with cpu_tensors_reach_triton(), _hook(take_down):
        result = function(**inputs, backend="triton")
        results = result if isinstance(result, tuple) else (result,)
        if not case.is_decoding:
            leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
            torch.autograd.grad(results, leaves, [torch.empty_like(y) for y in results], allow_unused=True)
    return list(launches.values())


def fingerprint(op: str) -> str:
    """Hash of the op's Triton sources: code alone, so that a comment or a docstring does not change it."""
    folder = Path(importlib.import_module(f"subquad.kernels.{op}").__file__).parent
    sources = sorted(path for path in folder.rglob("*.py") if "_triton" in path.relative_to(folder).as_posix())
    sources.append(folder.parent / "_target.py")
    digest = hashlib.sha256()
    for path in sources:
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_docstring(body[0]):
                body.pop(0)
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _check_names(ops: tuple[str, ...], targets: tuple[str, ...], dtypes: tuple[str, ...]) -> None:
    for what, names, known in (("op", ops, OPS), ("target", targets, TARGETS), ("dtype", dtypes, DTYPES)):
        for name in names:
            if name not in known:
                raise ValueError(f"compile_all: unknown {what} {name!r}; expected one of {', '.join(known)}")
    if _dispatch.INTERPRET:
        raise ValueError("compile_all: TRITON_INTERPRET=1 turns the compiler off; unset it")


def _leaves(op: str, case: Case, dtype: torch.dtype) -> dict:
    make_inputs = importlib.import_module(f"subquad.kernels.{op}._inputs").make_inputs
    inputs = make_inputs(torch.Generator().manual_seed(0), **case.dims)
    for name, x in inputs.items():
        if isinstance(x, Tensor) and x.is_floating_point():
            x = x.to(torch.float32 if name in STAY_FLOAT32 else dtype)
            inputs[name] = x.requires_grad_(not case.is_decoding)
    return inputs


def _driver(target: str, cache: str) -> AbstractContextManager:
    return driven_by(DriverWithoutDevice(target), cache)


@contextmanager
def _hook(take_down: Callable) -> Iterator[None]:
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.jit_cache_hook = take_down
        yield


def _compile(launch: Launch, op: str, dtype: str, target: str, version: str) -> CompiledKernel:
    log, sizes, error = io.StringIO(), {"registers": 0, "spill": 0, "shared": 0}, None
    try:
        with redirect_stdout(log):
            kernel = launch.function.preload(launch.specialization)
        sizes = sizes_of(kernel, log.getvalue())
    except (TritonError, RuntimeError) as failure:
        error = f"{type(failure).__name__}: {str(failure).strip().splitlines()[-1][:200]}"
    options = json.loads(launch.specialization)["options"]
    return CompiledKernel(
        op=op,
        kernel=launch.function.__name__,
        case=launch.case.label,
        width=launch.case.width,
        launch=launch.number,
        dtype=dtype,
        target=target,
        num_warps=options["num_warps"],
        num_stages=options["num_stages"],
        **sizes,
        error=error,
        triton=triton.__version__,
        source=version,
    )
