"""polynomial_attention: the weights are a quadratic polynomial, so a state of fixed size replaces the past."""

import math
from collections.abc import Sequence

from torch import Tensor

from .._dispatch import choose
from .._dtypes import unify
from .._packed import count_sequences
from .._shapes import bind_shapes

__all__ = ["num_features", "polynomial_attention"]

SHAPES = {"q": "b t h k", "k": "b t h k", "v": "b t h v", "state": "n h r v+normalize"}
EPSILON = 1e-12  # added to the normaliser, as Based does


def polynomial_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    coefficients: Sequence[float] = (1.0, 1.0, 0.5),
    *,
    scale: float | None = None,
    normalize: bool = True,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Mix values with weights that are a quadratic polynomial of the scores.

    a_ij = c0 + c1 s_ij + c2 s_ij^2 ,    s_ij = scale * q_i . k_j ,    j <= i
    y_i = sum_j a_ij v_j                               divided by (sum_j a_ij + 1e-12) with `normalize`

    Coefficients (1, 1, 0.5) are the Taylor expansion of exp in Based; (0, 0, 1) is ReBased's square.

    The same weights are a product of features, so the past fits into a state of fixed size: S = sum_j phi(k_j) v_j^T.
    The rows of S stand in this order, each group only if its coefficient is not 0:

        1                   c0     1 row
        k_i                 c1     k rows
        k_i k_j, i <= j     c2     k (k + 1) / 2 rows: (0,0) (0,1) .. (0,k-1) (1,1) (1,2) .. (k-1,k-1)

    They carry no weights: coefficients and scale are applied when q reads S. With `normalize`, v gains a last column
    of ones, and so does S: the sums of phi(k_j).

    Args:
        q: (b, t, h, k) queries.
        k: (b, t, h, k) keys.
        v: (b, t, h, v) values.
        coefficients: c0, c1, c2: finite, not negative, not all 0.
        scale: factor of the scores; 1 / sqrt(k) if None.
        normalize: divide by the sum of the weights.
        state: (n, h, r, v + normalize) what the past left, r rows as above; zero if None.
        cu_seqlens: (n + 1,) borders of n sequences packed into one row (b = 1); else n = b.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (b, t, h, v) in q.dtype, and the state after the last token (n, h, r, v + normalize) in float32 or wider.

    Raises:
        ValueError: shapes, dtypes, borders or coefficients that do not fit.
        BackendError: a named backend that cannot run here.

    Source: Arora et al. 2024 (Based, arXiv 2402.18668), sec. 4; Aksenov et al. 2024 (ReBased, 2402.10644), eq. 5.
    """
    q, k, v = unify("polynomial_attention", q, k, v, wide=(state,))
    coefficients = _checked(coefficients)
    n = count_sequences("polynomial_attention", cu_seqlens, q.shape[0], q.shape[1]) if q.ndim == 4 else None
    r, width = num_features(q.shape[-1], coefficients), v.shape[-1] + normalize
    tensors = {"q": q, "k": k, "v": v, "state": state}
    bind_shapes("polynomial_attention", tensors, SHAPES, {"n": n, "r": r, "v+normalize": width})
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    match choose("polynomial_attention", backend, q, k, v):
        case "triton":
            from ._triton import polynomial_attention as run
        case "torch":
            from ._torch import polynomial_attention as run
        case "reference":
            from ._reference import polynomial_attention as run
    return run(q, k, v, state, cu_seqlens, coefficients, scale, bool(normalize))


def num_features(k: int, coefficients: Sequence[float]) -> int:
    """Rows of the state: those of 1, k_i and k_i k_j (i <= j) whose coefficient is not 0."""
    c0, c1, c2 = coefficients
    return (c0 != 0) + (c1 != 0) * k + (c2 != 0) * (k * (k + 1) // 2)


def _checked(coefficients: Sequence[float]) -> list[float]:
    values = [float(c) for c in coefficients]
    if len(values) != 3:
        raise ValueError(f"polynomial_attention: coefficients must be three, (c0, c1, c2), got {tuple(values)}")
    if not all(math.isfinite(c) and c >= 0 for c in values) or not any(values):
        raise ValueError(
            f"polynomial_attention: coefficients must be finite, at least 0 and not all 0, got {tuple(values)}"
        )
    return values
