"""selective_scan: every channel a few sums that fade, with a step, an entry and a reading that may depend on x."""

from torch import Tensor

from .._dispatch import choose
from .._dtypes import can_look, unify
from .._packed import count_sequences
from .._shapes import bind_shapes

__all__ = ["selective_scan"]

SHAPES = {"x": "b t d", "dt": "b t d", "A": "d m", "B": "b t m", "C": "b t m", "D": "d", "state": "n d m"}


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run a diagonal state space with m states a channel. Cost and memory grow linearly with t.

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t ,    y_t = C_t . h_t + D x_t

    Args:
        x: (b, t, d) input.
        dt: (b, t, d) step, >= 0; after its softplus. May be float32 beside half-precision x.
        A: (d, m) rates, <= 0. May be float32 beside half-precision x.
        B: (b, t, m) how the input enters the states.
        C: (b, t, m) how the states are read.
        D: (d,) weight of the input in the output; none if None. May be float32 beside half-precision x.
        state: (n, d, m) h before the first token; zero if None.
        cu_seqlens: (n + 1,) borders of n sequences packed into one row (b = 1); else n = b.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (b, t, d) in x.dtype, and h after the last token (n, d, m) in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or borders that do not fit, or a dt below 0 or an A above 0 (seen on CPU tensors
            only). BackendError: a named backend that cannot run here.

    Source: Gu & Dao 2023 (Mamba, arXiv 2312.00752), eq. 2 and alg. 2, with B discretised by Euler's rule as in the
        authors' code. With dt, B and C that are the same for every token it is S4D (Gu et al. 2022, 2206.11893).
    """
    x, B, C = unify("selective_scan", x, B, C, wide=(dt, A, D, state))
    n = count_sequences("selective_scan", cu_seqlens, x.shape[0], x.shape[1]) if x.ndim == 3 else None
    tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "state": state}
    bind_shapes("selective_scan", tensors, SHAPES, {"n": n})
    _check_signs(dt, A)
    match choose("selective_scan", backend, x):
        case "triton":
            from ._triton import selective_scan as run
        case "torch":
            from ._torch import selective_scan as run
        case "reference":
            from ._reference import selective_scan as run
    return run(x, dt, A, B, C, D, state, cu_seqlens)


def _check_signs(dt: Tensor, A: Tensor) -> None:
    """NaN fails both."""
    if can_look(dt) and not (least := dt.detach().min().item()) >= 0:
        raise ValueError(f"selective_scan: dt must be >= 0, got {least:.4g}; apply softplus before")
    if can_look(A) and not (most := A.detach().max().item()) <= 0:
        raise ValueError(f"selective_scan: A must be <= 0, so that states fade, got {most:.4g}")
