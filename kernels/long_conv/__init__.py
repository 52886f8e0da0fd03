"""long_conv: each channel filtered over its whole past, between two gates."""

from torch import Tensor

from .._dispatch import choose
from .._dtypes import unify
from .._shapes import bind_shapes

__all__ = ["long_conv"]

SHAPES = {"x": "b t d", "filter": "d l", "skip": "d", "pre_gate": "b t d", "post_gate": "b t d"}


def long_conv(
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None = None,
    *,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Filter each channel causally over all the tokens before it, in t log t steps.

    u_t = pre_gate_t * x_t
    y_t = post_gate_t * (sum_{i=0}^{min(t, l-1)} filter_i * u_{t-i} + skip * u_t)

    Args:
        x: (b, t, d) input.
        filter: (d, l) taps, the first meets the newest token; those past the first t are not used.
        skip: (d,) weight of the token itself beside the filter; zero if None.
        pre_gate: (b, t, d) factor before the filter; one if None.
        post_gate: (b, t, d) factor after it; one if None.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (b, t, d) in x.dtype, computed in float32 or wider. A transform rounds globally: errors are relative to the
        largest value in time, and a value that is not finite spoils its whole channel.

    Raises:
        ValueError: shapes or dtypes that do not fit. BackendError: a named backend that cannot run here.

    Source: Poli et al. 2023 (arXiv 2302.10866), sec. 3; Fu et al. 2023 (2311.05908).
    """
    x, filter = unify("long_conv", x, filter, wide=(skip, pre_gate, post_gate))
    tensors = {"x": x, "filter": filter, "skip": skip, "pre_gate": pre_gate, "post_gate": post_gate}
    bind_shapes("long_conv", tensors, SHAPES)
    match choose("long_conv", backend, x):
        case "triton":
            from ._triton import long_conv as run
        case "torch":
            from ._torch import long_conv as run
        case "reference":
            from ._reference import long_conv as run
    return run(x, filter, skip, pre_gate, post_gate)
