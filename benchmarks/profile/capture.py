"""What a Python call would launch on a GPU that is not there: every kernel, and what PyTorch itself would do.

Tensors are fake: they have a shape and no memory. A driver without a device answers Triton, which binds arguments,
specialises and compiles as it would on the device; the launch itself is only written down.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch
import triton
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .._without_device import DriverWithoutDevice, cpu_tensors_reach_triton, driven_by
from .targets import GPU

NAMESPACE = "subquad"  # of our operators
LEAVES_UNTOUCHED = re.compile(r"aten\.(empty|new_empty)")  # allocates and writes nothing
ONLY_WRITES = re.compile(r"aten\.(zero|zeros|ones|full|fill|new_zeros|new_ones|new_full)_?(_like)?\.")


@dataclass(frozen=True)
class Launch:
    """One kernel as it was launched.

    grid: programs along x, y, z.
    scalars: whole-number arguments by name.
    tensors: bytes of each tensor argument by name.
    kernel: as compiled; `log` is what the assembler said of it.
    """

    name: str
    grid: tuple[int, int, int]
    scalars: dict[str, int]
    tensors: dict[str, int]
    kernel: triton.compiler.CompiledKernel
    log: str

    @property
    def num_programs(self) -> int:
        return math.prod(self.grid)


@dataclass(frozen=True)
class HelperOp:
    """An operation of PyTorch's own: bytes it reads and writes, each tensor once, and FLOP if it is a product."""

    name: str
    bytes: int
    flops: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Captured:
    """All that one pass launches, in order."""

    launches: tuple[Launch, ...]
    helpers: tuple[HelperOp, ...]


class Session:
    """Keeps what `record` sees being launched; `log` is what the assembler says meanwhile."""

    def __init__(self):
        self.log = io.StringIO()
        self._launches, self._helpers = [], []

    def launched(self, launch: Launch) -> None:
        self._launches.append(launch)

    def helped(self, helper: HelperOp) -> None:
        self._helpers.append(helper)

    def record(self, call: Callable) -> tuple[object, Captured]:
        """(what `call` returns, what it launched)."""
        self._launches, self._helpers = [], []
        with _Operators(self):
            result = call()
        return result, Captured(tuple(self._launches), tuple(self._helpers))

    def aside(self, call: Callable) -> list[Launch]:
        """What `call` launches, for a look: it is not recorded."""
        before = len(self._launches)
        call()
        found, self._launches = self._launches[before:], self._launches[:before]
        return found

    def forget_log(self) -> None:
        """What the assembler said belongs to the kernel that was compiled just before, or to none."""
        self.log.seek(0)
        self.log.truncate()

    def around_helper(self) -> AbstractContextManager:
        """What an operation of PyTorch's own runs in."""
        return nullcontext()


@contextmanager
def pretend(gpu: GPU) -> Iterator[Session]:
    """New tensors are fake, and Triton believes in the GPU.

    Triton takes the process for one with such a GPU from then on, so this belongs in a process of its own.
    """
    session = Session()
    with TemporaryDirectory() as cache, driven_by(_RecordingDriver(session, gpu), cache), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
        with cpu_tensors_reach_triton(), redirect_stdout(session.log), FakeTensorMode():
            yield session


class _RecordingDriver(DriverWithoutDevice):
    def __init__(self, session: Session, gpu: GPU):
        super().__init__(gpu.compiled_for)
        self._session = session
        self.utils = _NoUtils(gpu)

    def launcher_cls(self, source, metadata) -> "Recorder":
        return Recorder(self._session, source, metadata, self.get_current_device())


class _NoUtils:
    """What Triton asks of a device before it loads a kernel."""

    def __init__(self, gpu: GPU):
        self._gpu = gpu

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._gpu.block_shared_bytes, "multiprocessor_count": self._gpu.num_multiprocessors}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        """(module, function, registers, spills, most threads of a block)."""
        return name, name, 0, 0, 1024


class Recorder:
    """Called as the function that launches one compiled kernel is; writes the launch down."""

    def __init__(self, session: Session, source, metadata, device: int):
        compiled = source.fn.device_caches[device][0].values()
        self._session = session
        self._signature = source.signature
        self._names = source.fn.arg_names
        self._kernel = next(kernel for kernel in compiled if kernel.metadata is metadata)
        self._log = session.log.getvalue()  # compiled just before: the assembler's log is of this kernel
        session.forget_log()

    def __call__(self, x, y, z, stream, function, packed, metadata, before, after, *arguments) -> None:
        named = {
            name: value
            for name, value in zip(self._names, arguments, strict=True)
            if self._signature[name] != "constexpr"
        }
        self._session.launched(
            Launch(
                name=self._kernel.name,
                grid=(x, y, z),
                scalars={name: value for name, value in named.items() if isinstance(value, int)},
                tensors={name: tensor_bytes(value) for name, value in named.items() if isinstance(value, Tensor)},
                kernel=self._kernel,
                log=self._log,
            )
        )


class _Operators(TorchDispatchMode):
    """Runs our operators as they run on a GPU, not their shapes alone, and counts what PyTorch does itself."""

    def __init__(self, session: Session):
        super().__init__()
        self._session = session

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == NAMESPACE:
            with self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        if func.namespace == "aten":
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        with self._session.around_helper():
            result = func(*args, **kwargs)
        helper = helper_op(func, args, kwargs, result)
        if helper is not None:
            self._session.helped(helper)
        return result


def helper_op(func, args: tuple, kwargs: dict, result) -> HelperOp | None:
    """What an operation of PyTorch moves, None if nothing: it makes a view, or memory without content."""
    name = str(func)
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    if func.namespace != "aten" or not outputs or LEAVES_UNTOUCHED.match(name):
        return None
    storages = {x.untyped_storage()._cdata for x in inputs}
    is_view = all(x.untyped_storage()._cdata in storages for x in outputs)
    if is_view and not func._schema.is_mutable:
        return None
    if ONLY_WRITES.match(name):
        inputs = []
    elif name.startswith("aten.copy_"):
        inputs = inputs[1:]
    count = flop_registry.get(func.overloadpacket)
    return HelperOp(
        name=name,
        bytes=sum(map(tensor_bytes, (*inputs, *outputs))),
        flops=count(*args, **kwargs, out_val=result) if count else 0,
        dtype=outputs[0].dtype,
    )


def tensor_bytes(x: Tensor) -> int:
    """Bytes of a tensor's elements; one that repeats its elements by a stride of 0 has only those that it stores."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
