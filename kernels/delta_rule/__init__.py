"""delta_rule: a memory of outer products that corrects what it holds under a key before it writes."""

from torch import Tensor

from .._dispatch import choose
from .._dtypes import can_look, check_log_decay, unify
from .._packed import count_sequences
from .._shapes import bind_shapes

__all__ = ["delta_rule"]

SHAPES = {"q": "b t h k", "k": "b t h k", "v": "b t h v", "beta": "b t h", "log_decay": "b t h", "state": "n h k v"}
CHANNEL_SHAPES = SHAPES | {"log_decay": "b t h k"}


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Let a matrix fade, then move what it holds under the key a share beta towards v. Linear in t.

    A_t = exp(log_decay_t) S_{t-1} ,    S_t = A_t + beta_t k_t (v_t - k_t A_t)^T ,    y_t = scale * q_t S_t

    With keys of unit norm, beta = 1 replaces what was under a key, beta in (1, 2] overshoots: I - beta k k^T then has
    a negative eigenvalue.

    Args:
        q: (b, t, h, k) queries.
        k: (b, t, h, k) keys, of norm at most 1: with |k|^2 beta > 2 the memory grows without bound.
        v: (b, t, h, v) values.
        beta: (b, t, h) share of the correction, in [0, 2]. May be float32 beside half-precision q, k, v.
        log_decay: (b, t, h) one factor a head, or (b, t, h, k) one a key channel; finite and <= 0; None never fades.
            May be float32 beside half-precision q, k, v.
        scale: factor on what is read; 1 / sqrt(k) if None.
        state: (n, h, k, v) memory before the first token; zero if None.
        cu_seqlens: (n + 1,) borders of n sequences packed into one row (b = 1); else n = b.
        backend: "auto", "triton", "torch" or "reference".

    Returns:
        y (b, t, h, v) in q.dtype, and the memory after the last token (n, h, k, v) in float32 or wider.

    Raises:
        ValueError: shapes, dtypes or borders that do not fit, or a log_decay above 0 or a beta outside of [0, 2]
            (seen on CPU tensors only). BackendError: a named backend that cannot run here.

    Source: Schlag et al. 2021 (arXiv 2102.11174), sec. 4.2, and Yang et al. 2024 (DeltaNet, 2406.06484); with a decay
        a head Yang et al. 2024 (Gated DeltaNet, 2412.06464), eq. 10; with a decay a channel Kimi Team 2025 (Kimi
        Delta Attention, 2510.26692), eq. 1; beta up to 2 Grazzi et al. 2024 (2411.12537).
    """
    q, k, v = unify("delta_rule", q, k, v, wide=(beta, log_decay, state))
    n = count_sequences("delta_rule", cu_seqlens, q.shape[0], q.shape[1]) if q.ndim == 4 else None
    tensors = {"q": q, "k": k, "v": v, "beta": beta, "log_decay": log_decay, "state": state}
    shapes = CHANNEL_SHAPES if log_decay is not None and log_decay.ndim == 4 else SHAPES
    bind_shapes("delta_rule", tensors, shapes, {"n": n})
    check_log_decay("delta_rule", log_decay)
    _check_beta(beta)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    match choose("delta_rule", backend, q, k, v):
        case "triton":
            from ._triton import delta_rule as run
        case "torch":
            from ._torch import delta_rule as run
        case "reference":
            from ._reference import delta_rule as run
    return run(q, k, v, beta, log_decay, state, cu_seqlens, scale)


def _check_beta(beta: Tensor) -> None:
    if can_look(beta):
        least, most = (x.item() for x in beta.detach().aminmax())  # NaN if there is one
        if not (least >= 0 and most <= 2):
            raise ValueError(f"delta_rule: beta must be in [0, 2], got values from {least:.4g} to {most:.4g}")
