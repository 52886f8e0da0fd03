"""linear_recurrence: every channel a sum that fades."""

from torch import Tensor

from .._dispatch import choose
from .._dtypes import check_log_decay, unify
from .._packed import count_sequences
from .._shapes import bind_shapes

__all__ = ["linear_recurrence"]

SHAPES = {"x": "b t d", "log_decay": "b t d", "state": "n d"}


def linear_recurrence(
    x: Tensor,
    log_decay: Tensor,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Let each channel fade by a factor of its own, and add the input.

    h_t = exp(log_decay_t) * h_{t-1} + x_t ,    y_t = h_t

    Args:
        x: (b, t, d) input.
        log_decay: (b, t, d) logarithm of the factor; finite and <= 0. May be float32 beside half-precision x.
        state: (n, d) h before the first token; zero if None.
        cu_seqlens: (n + 1,) borders of n sequences packed into one row (b = 1); else n = b.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (b, t, d) in x.dtype, and h after the last token (n, d) in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or borders that do not fit, or a log_decay above 0 (seen on CPU tensors only).
        BackendError: a named backend that cannot run here.

    Source: De et al. 2024 (RG-LRU, arXiv 2402.19427), eq. 4; Qin et al. 2023 (HGRN, 2311.04823), eq. 5; Feng et al.
        2024 (minGRU, 2410.01201), sec. 3.1. What multiplies the input there is part of x here.
    """
    (x,) = unify("linear_recurrence", x, wide=(log_decay, state))
    n = count_sequences("linear_recurrence", cu_seqlens, x.shape[0], x.shape[1]) if x.ndim == 3 else None
    tensors = {"x": x, "log_decay": log_decay, "state": state}
    bind_shapes("linear_recurrence", tensors, SHAPES, {"n": n})
    check_log_decay("linear_recurrence", log_decay)
    match choose("linear_recurrence", backend, x):
        case "triton":
            from ._triton import linear_recurrence as run
        case "torch":
            from ._torch import linear_recurrence as run
        case "reference":
            from ._reference import linear_recurrence as run
    return run(x, log_decay, state, cu_seqlens)
