"""linear_attention: a memory of outer products that fades, read by the query."""

from torch import Tensor

from .._dispatch import choose
from .._dtypes import check_log_decay, unify
from .._packed import count_sequences
from .._shapes import bind_shapes

__all__ = ["linear_attention"]

EPS = 1e-12  # added to the sum of weights before dividing by it
SHAPES = {"q": "b t h k", "k": "b t h k", "v": "b t h v", "log_decay": "b t h", "state": "n h k m"}
CHANNEL_SHAPES = SHAPES | {"log_decay": "b t h k"}


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    normalize: bool = False,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Write k v^T into a matrix that fades, read it with q. Cost and memory grow linearly with t.

    S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T ,    y_t = scale * q_t S_t

    With `normalize`, v gains a last column of ones, which sums the weights, and y_t is divided by it:
    [num_t, den_t] = scale * q_t S_t ,    y_t = num_t / (den_t + 1e-12).

    Args:
        q: (b, t, h, k) queries.
        k: (b, t, h, k) keys.
        v: (b, t, h, v) values.
        log_decay: (b, t, h) one factor a head, or (b, t, h, k) one a key channel; finite and <= 0; None never fades.
            May be float32 beside half-precision q, k, v.
        scale: factor on what is read; 1 / sqrt(k) if None.
        normalize: divide by the sum of the weights; for keys and queries that went through a positive feature map.
        state: (n, h, k, m) memory before the first token, m = v, or v + 1 with `normalize`; zero if None.
        cu_seqlens: (n + 1,) borders of n sequences packed into one row (b = 1); else n = b.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (b, t, h, v) in q.dtype, and the memory after the last token (n, h, k, m) in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or borders that do not fit, or a log_decay above 0 (seen on CPU tensors only).
        BackendError: a named backend that cannot run here.

    Source: Katharopoulos et al. 2020 (arXiv 2006.16236), eq. 9-12; with a decay a head Sun et al. 2023 (2307.08621),
        eq. 6, and Dao & Gu 2024 (2405.21060); with a decay a channel Yang et al. 2023 (2312.06635), eq. 3.
    """
    q, k, v = unify("linear_attention", q, k, v, wide=(log_decay, state))
    n = count_sequences("linear_attention", cu_seqlens, q.shape[0], q.shape[1]) if q.ndim == 4 else None
    tensors = {"q": q, "k": k, "v": v, "log_decay": log_decay, "state": state}
    shapes = CHANNEL_SHAPES if log_decay is not None and log_decay.ndim == 4 else SHAPES
    bind_shapes("linear_attention", tensors, shapes, {"n": n, "m": v.shape[-1] + normalize})
    check_log_decay("linear_attention", log_decay)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    match choose("linear_attention", backend, q, k, v):
        case "triton":
            from ._triton import linear_attention as run
        case "torch":
            from ._torch import linear_attention as run
        case "reference":
            from ._reference import linear_attention as run
    return run(q, k, v, log_decay, state, cu_seqlens, scale, normalize)
