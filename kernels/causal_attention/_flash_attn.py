"""causal_attention by the package flash-attn: a baseline, and a choice where it is installed."""

from torch import Tensor

from .._dispatch import refuse_unmet


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    needs = {
        "no sinks": sinks is None,
        "no starts": starts is None,
        "values as wide as keys": v.shape[-1] == k.shape[-1],
        "heads of at most 256 channels": k.shape[-1] <= 256,
    }
    refuse_unmet("causal_attention", "flash_attn", needs)
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    before = -1 if window is None else window - 1  # keys before the query's own; -1 is all
    options = dict(softmax_scale=scale, causal=True, window_size=(before, 0), softcap=softcap or 0.0)
    if cu_seqlens is None:
        return flash_attn_func(q, k, v, **options)
    borders, longest = cu_seqlens.int(), int(cu_seqlens.diff().max())
    return flash_attn_varlen_func(q[0], k[0], v[0], borders, borders, longest, longest, **options)[None]
