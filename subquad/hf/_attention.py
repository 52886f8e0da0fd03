"""attn_implementation="subquad": the exact attention of transformers' models, by causal_attention."""

import torch
from torch import Tensor, nn

from subquad.kernels.causal_attention import causal_attention

NAME = "subquad"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **beside,
) -> tuple[Tensor, None]:
    """What transformers' attention modules call. There are no attention weights to return.

    Args:
        module: the attention module.
        query, key, value: (b, h, t, k), (b, g, s, k) and (b, g, s, v).
        attention_mask: as `first_visible_mask` makes it.
        dropout: must be 0.
        scaling: factor of the scores; 1 / sqrt(k) if None.
        is_causal: the module's own if None; must be true.
        sliding_window: number of keys that a query sees.
        softcap: bound on the size of a score.
        s_aux: (h,) the sinks' logits.
        position_bias: not supported.
        cu_seq_lens_q: (n + 1,) borders of packed sequences (b = 1); they go before what a mask says.
        beside: what models hand on and no attention needs, e.g. position_ids.

    Returns:
        (b, t, h, v), contiguous.
    """
    _refuse(module, dropout, is_causal, position_bias, beside)
    n = key.shape[2]
    first, cu_seqlens = None, cu_seq_lens_q
    if attention_mask is not None and cu_seqlens is None:
        if attention_mask.ndim != 4 or attention_mask.dtype != torch.int64:
            raise ValueError(
                f"attn_implementation={NAME!r} makes its masks from 2-D ones, (b, n), got "
                f"{attention_mask.dtype} of shape {tuple(attention_mask.shape)}; use attn_implementation='sdpa'"
            )
        first, n = attention_mask[:, 0, :, 0], attention_mask.shape[-1]  # (b, 1 or t)
    q, k, v = query.transpose(1, 2), key[:, :, :n].transpose(1, 2), value[:, :, :n].transpose(1, 2)
    options = dict(window=sliding_window, scale=scaling, softcap=softcap, sinks=s_aux)
    if first is not None and first.shape[1] > 1:
        y = _attend_packed(q, k, v, first, options)
    else:
        starts = first[:, 0] if first is not None else None
        y = causal_attention(q, k, v, starts=starts, cu_seqlens=cu_seqlens, **options)
    return y.contiguous(), None


def _attend_packed(q: Tensor, k: Tensor, v: Tensor, first: Tensor, options: dict) -> Tensor:
    """Row by row, for each has borders of its own; what lies before a row's first real token sees nothing."""
    t = q.shape[1]
    if k.shape[1] != t:
        raise ValueError(
            f"attn_implementation={NAME!r}: packed sequences cannot continue a cache, got t={t}, s={k.shape[1]}"
        )
    places, ys = torch.arange(t, device=q.device), []
    for row in range(q.shape[0]):
        padding = int((first[row] > places).sum())
        borders = places[padding:][first[row, padding:] == places[padding:]] - padding
        cu_seqlens = torch.cat([borders, borders.new_tensor([t - padding])]).to(torch.int32)
        y = q.new_zeros(1, t, q.shape[2], v.shape[3])
        if padding < t:
            parts = (x[row : row + 1, padding:] for x in (q, k, v))
            y = torch.cat([y[:, :padding], causal_attention(*parts, cu_seqlens=cu_seqlens, **options)], dim=1)
        ys.append(y)
    return torch.cat(ys)


def _refuse(module: nn.Module, dropout: float, is_causal: bool | None, position_bias, beside: dict) -> None:
    refused = {
        f"dropout={dropout}: the kernels drop nothing; set the config's attention_dropout to 0": dropout > 0,
        "attention that is not causal": not (getattr(module, "is_causal", True) if is_causal is None else is_causal),
        "position_bias": position_bias is not None,
        "output_attentions: the weights are never formed": bool(beside.get("output_attentions")),
        "the paged cache of continuous batching": beside.get("cache") is not None,
    }
    for what, asked in refused.items():
        if asked:
            raise ValueError(
                f"attn_implementation={NAME!r} does not support {what}; or use attn_implementation='sdpa' or 'eager'"
            )
