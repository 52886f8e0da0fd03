"""generalized_delta_rule: a memory of outer products that is asked, erased and written under different vectors."""

from torch import Tensor

from .._dispatch import choose
from .._dtypes import check_log_decay, unify
from .._packed import count_sequences
from .._shapes import bind_shapes

__all__ = ["generalized_delta_rule"]

SHAPES = {
    "q": "b t h k", "k": "b t h k", "v": "b t h v", "a": "b t h k", "b": "b t h k", "log_decay": "b t h k",
    "state": "n h k v",
}  # fmt: skip


def generalized_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    log_decay: Tensor,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Let a matrix fade, add under b what it held under a, and write v under k. Linear in t.

    S_t = diag(exp(log_decay_t)) S_{t-1} + b_t (a_t S_{t-1})^T + k_t v_t^T ,    y_t = scale * q_t S_t

    a is read before the memory fades. With b against a, what was under a is erased: a = -k exp(log_decay) and
    b = beta k, beside beta k for k, is `delta_rule`. RWKV-7 has a = -key and b = key * rate, of another key than k.

    Args:
        q: (b, t, h, k) queries.
        k: (b, t, h, k) keys.
        v: (b, t, h, v) values.
        a: (b, t, h, k) under what the memory is asked.
        b: (b, t, h, k) under what the answer is added. Where diag(exp(log_decay)) + b a^T stretches some direction,
            and does so token after token, the memory grows without bound.
        log_decay: (b, t, h, k) finite and <= 0. May be float32 beside the others in half precision.
        scale: factor on what is read; 1 / sqrt(k) if None.
        state: (n, h, k, v) memory before the first token; zero if None.
        cu_seqlens: (n + 1,) borders of n sequences packed into one row (b = 1); else n = b.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (b, t, h, v) in q.dtype, and the memory after the last token (n, h, k, v) in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or borders that do not fit, or a log_decay above 0 (seen on CPU tensors only).
        BackendError: a named backend that cannot run here.

    Source: Peng et al. 2025 (RWKV-7, arXiv 2503.14456), eq. 16, transposed; the form is diagonal plus low rank.
    """
    q, k, v, a, b = unify("generalized_delta_rule", q, k, v, a, b, wide=(log_decay, state))
    n = count_sequences("generalized_delta_rule", cu_seqlens, q.shape[0], q.shape[1]) if q.ndim == 4 else None
    tensors = {"q": q, "k": k, "v": v, "a": a, "b": b, "log_decay": log_decay, "state": state}
    bind_shapes("generalized_delta_rule", tensors, SHAPES, {"n": n})
    check_log_decay("generalized_delta_rule", log_decay)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    match choose("generalized_delta_rule", backend, q, k, v):
        case "triton":
            from ._triton import generalized_delta_rule as run
        case "torch":
            from ._torch import generalized_delta_rule as run
        case "reference":
            from ._reference import generalized_delta_rule as run
    return run(q, k, v, a, b, log_decay, state, cu_seqlens, scale)
