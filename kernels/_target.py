"""The GPU that Triton compiles for. Tiles and precision are chosen by it and not by a tensor's device: so kernels
that are compiled ahead of time, for a GPU that is not there, are those that would run on it."""

import triton


def knows_tf32() -> bool:
    """Whether float32 products may run on tensor cores as sums of tf32 products."""
    return _has_target() and _target().backend == "cuda"


def multiplies_from_shared_memory() -> bool:
    """Hopper and later: operands of a product need no registers, so larger tiles fit."""
    return _has_target() and _target().backend == "cuda" and _target().arch >= 90


def _has_target() -> bool:
    """Triton's interpreter has none."""
    return not triton.knobs.runtime.interpret


def _target():
    return triton.runtime.driver.active.get_current_target()
