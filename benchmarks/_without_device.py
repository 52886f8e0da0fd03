"""Triton made to compile for a GPU that is not there, and the sizes of what it compiled."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from subquad.kernels import _dispatch

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:89": GPUTarget("cuda", 89, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class DriverWithoutDevice(DriverBase):
    """Answers what Triton asks before it compiles. One device number for each target keeps their caches apart."""

    def __init__(self, target: str):
        super().__init__()
        self._target = TARGETS[target]
        self._number = list(TARGETS).index(target)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_benchmarker(self):
        raise NotImplementedError("nothing runs here, so nothing can be timed")


@contextmanager
def driven_by(driver: DriverWithoutDevice, cache: str) -> Iterator[None]:
    """Triton believes in the driver's target, compiles everything anew and prints the assembler's log.

    It takes the process for one with such a GPU from then on; only the other settings end with the context.
    """
    triton.runtime.driver.set_active(driver)
    with triton.knobs.cache.scope(), triton.knobs.compilation.scope(), triton.knobs.nvidia.scope():
        triton.knobs.cache.dir = cache
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        yield


def cpu_tensors_reach_triton() -> AbstractContextManager:
    """The dispatch sees CPU tensors; as in the interpreter, it lets them through when asked for triton."""
    return mock.patch.object(_dispatch, "INTERPRET", True)


def sizes_of(kernel: triton.compiler.CompiledKernel, log: str) -> dict[str, int]:
    """Registers and spilled bytes of a thread, shared bytes of a block; `log` is what ptxas said, empty on AMD."""
    sizes = _amd_sizes(kernel.asm["amdgcn"]) if "amdgcn" in kernel.asm else _nvidia_sizes(log)
    return {**sizes, "shared": kernel.metadata.shared}


def _nvidia_sizes(log: str) -> dict[str, int]:
    """From the log of ptxas; spills are the bytes it stores and loads again."""
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    return {
        "registers": max(int(used) for used in re.findall(r"Used (\d+) registers", log)),
        "spill": sum(int(stores) + int(loads) for stores, loads in spills),
    }


def _amd_sizes(text: str) -> dict[str, int]:
    """From the metadata at the end of the assembly; a spilled vector register is 4 bytes of each thread."""
    counts = {name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) for name in ("vgpr_count", "vgpr_spill_count")}
    return {"registers": counts["vgpr_count"], "spill": 4 * counts["vgpr_spill_count"]}
