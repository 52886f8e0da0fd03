"""short_conv: each channel filtered over its last few tokens."""

from torch import Tensor

from .._dispatch import choose
from .._dtypes import unify
from .._packed import count_sequences
from .._shapes import bind_shapes

__all__ = ["short_conv"]

MAX_WIDTH = 8
ACTIVATIONS = (None, "silu")
SHAPES = {"x": "b t d", "weight": "d w", "bias": "d", "state": "n w-1 d"}


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Filter each channel causally over its last w tokens.

    y_t = act(bias + sum_{i=0}^{w-1} weight_i * x_{t-w+1+i})

    Args:
        x: (b, t, d) input.
        weight: (d, w) filter, its last column meets the newest token; w is at most 8.
        bias: (d,) added before the activation.
        activation: None or "silu".
        state: (n, w - 1, d) the inputs before the first token, oldest first; zero if None.
        cu_seqlens: (n + 1,) borders of n sequences packed into one row (b = 1); else n = b.
        backend: "auto", "triton", "torch", "reference" or, where that package is installed, "causal_conv1d".

    Returns:
        y (b, t, d) in x.dtype, and the last w - 1 inputs of each sequence, (n, w - 1, d), in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or borders that do not fit. BackendError: a named backend that cannot run here.

    Source: Poli et al. 2023 (arXiv 2302.10866), sec. 3.2; Gu & Dao 2023 (2312.00752), fig. 3.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"short_conv: activation must be None or 'silu', got {activation!r}")
    x, weight = unify("short_conv", x, weight, wide=(bias, state))
    n = count_sequences("short_conv", cu_seqlens, x.shape[0], x.shape[1]) if x.ndim == 3 else None
    tensors = {"x": x, "weight": weight, "bias": bias, "state": state}
    width = weight.shape[-1]
    bind_shapes("short_conv", tensors, SHAPES, {"n": n, "w-1": width - 1})
    if width > MAX_WIDTH:
        raise ValueError(f"short_conv: weight must be at most {MAX_WIDTH} wide, got w={width}; use long_conv")
    match choose("short_conv", backend, x):
        case "triton":
            from ._triton import short_conv as run
        case "torch":
            from ._torch import short_conv as run
        case "reference":
            from ._reference import short_conv as run
        case "causal_conv1d":
            from ._causal_conv1d import short_conv as run
    return run(x, weight, bias, state, cu_seqlens, activation)
