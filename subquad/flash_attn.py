"""flash-attn's functions by our kernels: instead of `flash_attn` import them from `subquad.flash_attn`.

The same names, arguments, layouts and meaning, on any device, for what is causal; the rest is refused.
"""

import torch
from torch import Tensor

from subquad.kernels.causal_attention import causal_attention

__all__ = ["flash_attn_func", "flash_attn_varlen_func"]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """`causal_attention` under flash-attn's name: queries are the last of the keys, one that sees no key gives 0.

    Args:
        q: (b, t, h, k) queries.
        k, v: (b, s, g, k) keys and values; g divides h. With more queries than keys the first see nothing.
        dropout_p: must be 0.
        softmax_scale: factor of the scores; 1 / sqrt(k) if None.
        causal: must be true, unless the window ends at the query or there is one query.
        window_size: (left, right): a query sees `left` keys before its own, all if -1; right must be 0 or -1.
        softcap: bound on the size of a score; none if 0.
        alibi_slopes: must be None.
        deterministic: results are, always.
        return_attn_probs: must be false.

    Returns:
        (b, t, h, k).

    Raises:
        ValueError: what was asked for is not causal, or one of what must not be given.
    """
    where = "flash_attn_func"
    options = _options(where, q.shape[1], dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes)
    _refuse(where, {"return_attn_probs=True": return_attn_probs})
    return _attend(q, k, v, options)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """`flash_attn_func` of sequences that lie one behind the other.

    Args:
        q: (tokens, h, k) queries.
        k, v: (tokens, g, k) keys and values.
        cu_seqlens_q, cu_seqlens_k: (n + 1,) borders of the n sequences, among queries and among keys. One pass where
            they are equal; else sequence by sequence.
        max_seqlen_q, max_seqlen_k: longest of them; what is read is the borders.
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs: as
            there.
        block_table: must be None.

    Returns:
        (tokens, h, k).

    Raises:
        ValueError: as there.
    """
    where = "flash_attn_varlen_func"
    options = _options(where, max_seqlen_q, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes)
    _refuse(where, {"return_attn_probs=True": return_attn_probs, "block_table": block_table is not None})
    if torch.equal(cu_seqlens_q, cu_seqlens_k):
        return causal_attention(q[None], k[None], v[None], cu_seqlens=cu_seqlens_q, **options)[0]
    queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    return torch.cat([_attend(*(part[None] for part in sequence), options)[0] for sequence in parts])


def _attend(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """Queries before the first key see nothing."""
    blind = max(q.shape[1] - k.shape[1], 0)
    seeing = q[:, blind:]
    nothing = q.new_zeros(*q.shape[:1], blind, q.shape[2], v.shape[3])
    if seeing.shape[1] == 0:
        return nothing
    return torch.cat([nothing, causal_attention(seeing, k, v, **options)], dim=1)


def _options(
    where: str, t: int, dropout_p: float, scale: float | None, causal: bool, window_size: tuple[int, int],
    softcap: float, alibi_slopes: Tensor | None,
) -> dict:  # fmt: skip
    left, right = window_size
    sees_later = right > 0 or (not causal and right < 0 and t > 1)
    _refuse(
        where,
        {
            f"dropout_p={dropout_p}": dropout_p > 0,
            f"keys after the query (causal={causal}, window_size={tuple(window_size)})": sees_later,
            "alibi_slopes": alibi_slopes is not None,
        },
    )
    return dict(window=left + 1 if left >= 0 else None, scale=scale, softcap=softcap if softcap > 0 else None)


def _refuse(where: str, refused: dict[str, bool]) -> None:
    for what, asked in refused.items():
        if asked:
            raise ValueError(f"{where}: {what} is not supported by subquad's causal kernels; use flash-attn itself")
