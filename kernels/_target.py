"""The GPU that Triton compiles for. Tiles and precision are chosen by it and not by a tensor's device: so kernels
that are compiled ahead of time, for a GPU that is not there, are those that would run on it."""

from functools import cache

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver

# Compute capabilities that compile and fit alike. Others (8.6, 8.9, 12.0) have less shared memory: they are "cuda".
FAMILIES = {80: "sm_80", 87: "sm_80", 90: "sm_90", 100: "sm_100", 103: "sm_100"}
MAKERS = ("cuda", "hip")  # the names that a GPU has which is in no family
INTERPRETER = "interpreter"
ENOUGH = 0.4  # programs for each multiprocessor


def architecture() -> str:
    """The family of the GPU, e.g. "sm_90" or "gfx942"; "cuda" or "hip" if it has none; or INTERPRETER."""
    return family_of(_target()) if _has_target() else INTERPRETER


def family_of(target: GPUTarget) -> str:
    """What `architecture` is on a GPU that Triton calls this."""
    if target.backend == "cuda":
        return FAMILIES.get(target.arch, "cuda")
    return "gfx942" if target.arch in ("gfx942", "gfx950") else "hip"


def maker_of(architecture: str) -> str:
    """ "hip" for AMD's, "cuda" for NVIDIA's and for the interpreter."""
    return "hip" if architecture in ("gfx942", "hip") else "cuda"


def gpu_name() -> str | None:
    """The name of the GPU that kernels run on; None in the interpreter and where Triton's target is only made up."""
    if not (_has_target() and torch.cuda.is_available() and _drives_a_gpu()):
        return None
    return _name_of(torch.cuda.current_device())


def knows_tf32() -> bool:
    """Whether float32 products may run on tensor cores as sums of tf32 products."""
    return _has_target() and _target().backend == "cuda"


def multiprocessors() -> int:
    """Of the GPU that Triton compiles for, be it there or not; the interpreter runs one program at a time."""
    if not _has_target():
        return 1
    driver = triton.runtime.driver.active
    return driver.utils.get_device_properties(driver.get_current_device())["multiprocessor_count"]


def fills(programs: int) -> bool:
    """Whether that many programs, each walking along time, use the memory's speed better than a second pass would."""
    return programs >= ENOUGH * multiprocessors()


def _has_target() -> bool:
    """Triton's interpreter has none."""
    return not triton.knobs.runtime.interpret


def _drives_a_gpu() -> bool:
    """What compiles for a GPU that is not there puts a driver of another kind in place of Triton's own."""
    return isinstance(triton.runtime.driver.active, GPUDriver)


@cache
def _name_of(device: int) -> str:
    return torch.cuda.get_device_name(device)


def _target() -> GPUTarget:
    return triton.runtime.driver.active.get_current_target()
