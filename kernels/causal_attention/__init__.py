"""causal_attention: softmax attention over the past, all of it or the last few tokens."""

import torch
from torch import Tensor

from .._dispatch import choose
from .._dtypes import can_look, unify
from .._packed import count_sequences
from .._shapes import bind_shapes

__all__ = ["causal_attention"]

SHAPES = {"q": "b t h k", "k": "b s g k", "v": "b s g v", "sinks": "h", "starts": "b"}


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Average the values of the visible keys, weighted by how well each key fits the query.

    y_i = sum_j exp(s_ij) v_j / (exp(sink) + sum_j exp(s_ij)) ,    s_ij = cap(scale * q_i . k_j) ,
    over the keys j with max(starts, p - window + 1) <= j <= p, where p = i + s - t: the queries are the last t of
    the s keys. cap(x) = softcap * tanh(x / softcap) or x; without sinks exp(sink) is 0. A query that sees no key
    gives 0. Query head i reads key head i // (h / g).

    Args:
        q: (b, t, h, k) queries, 1 <= t <= s.
        k: (b, s, g, k) keys; g divides h.
        v: (b, s, g, v) values.
        window: number of keys that a query sees, its own included; all if None.
        scale: positive factor of the scores; 1 / sqrt(k) if None.
        softcap: bound on the size of a score, positive; no bound if None.
        sinks: (h,) a logit for each head that takes weight and gives no value, neither scaled nor capped.
        starts: (b,) of int32 or int64, the first real key of each left-padded row, in 0..s.
        cu_seqlens: (n + 1,) borders of n sequences packed into one row (b = 1, t = s).
        backend: "auto", "triton", "torch", "reference" or, where that package is installed, "flash_attn".

    Returns:
        y (b, t, h, v) in q.dtype.

    Raises:
        ValueError: shapes, dtypes, borders or options that do not fit. BackendError: a named backend that cannot
            run here.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), eq. 1; grouped heads: Ainslie et al. 2023 (2305.13245); window:
    Beltagy et al. 2020 (2004.05150); softcap: Gemma 2 (2408.00118), sec. 2; sinks: gpt-oss (2508.10925), sec. 2.2.
    """
    where = "causal_attention"
    q, k, v = unify(where, q, k, v, wide=(sinks,))
    tensors = {"q": q, "k": k, "v": v, "sinks": sinks, "starts": starts}
    sizes = bind_shapes(where, tensors, SHAPES)
    _check_sizes(where, sizes)
    _check_options(where, window, scale, softcap)
    if starts is not None:
        _check_starts(where, starts, q, sizes["s"])
    if cu_seqlens is not None:
        _check_packing(where, cu_seqlens, starts, sizes)
    match choose(where, backend, q, v):
        case "triton":
            from ._triton import causal_attention as run
        case "torch":
            from ._torch import causal_attention as run
        case "reference":
            from ._reference import causal_attention as run
        case "flash_attn":
            from ._flash_attn import causal_attention as run
    scale = sizes["k"] ** -0.5 if scale is None else float(scale)
    return run(q, k, v, sinks, starts, cu_seqlens, window, scale, softcap)


def _check_sizes(where: str, sizes: dict[str, int]) -> None:
    if sizes["h"] % sizes["g"]:
        raise ValueError(f"{where}: the key heads g must divide the query heads h, got g={sizes['g']}, h={sizes['h']}")
    if sizes["t"] > sizes["s"]:
        raise ValueError(
            f"{where}: queries are the last t of s keys, so t must be at most s, got t={sizes['t']}, s={sizes['s']}; "
            "give the keys of every query"
        )


def _check_options(where: str, window: int | None, scale: float | None, softcap: float | None) -> None:
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(
            f"{where}: window counts the keys a query sees, its own included, so it must be an integer >= 1, "
            f"got {window}; use None for all keys"
        )
    for name, value in (("scale", scale), ("softcap", softcap)):
        if value is not None and not value > 0:
            raise ValueError(f"{where}: {name} must be positive, got {value}; use None for its default")


def _check_starts(where: str, starts: Tensor, q: Tensor, s: int) -> None:
    if starts.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{where}: starts are indices of keys, expected int32 or int64, got {starts.dtype}")
    if starts.device != q.device:
        raise ValueError(f"{where}: all tensors must be on one device, got {q.device} and {starts.device}")
    if can_look(starts) and not ((starts >= 0) & (starts <= s)).all():
        raise ValueError(f"{where}: starts must be in 0..s={s} (s: the row is all padding), got {starts.tolist()}")


def _check_packing(where: str, cu_seqlens: Tensor, starts: Tensor | None, sizes: dict[str, int]) -> None:
    if starts is not None:
        raise ValueError(f"{where}: cu_seqlens and starts exclude each other: packed sequences have no padding")
    if sizes["t"] != sizes["s"]:
        raise ValueError(f"{where}: with cu_seqlens every key has its query, got t={sizes['t']}, s={sizes['s']}")
    count_sequences(where, cu_seqlens, sizes["b"], sizes["t"])
