"""What an attention mask of transformers says about the tokens of this call: where rows begin, and where sequences end.

Our own masks are small: (b, 1, 1 or t, n) of int64, the first key that each query may see, of n keys, of which the
queries are the last. The axes of keys and of equal queries have stride 0, so nothing is stored for them.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.masking_utils import sdpa_mask

from subquad.swapping._grafts import row_starts


def first_visible_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    config=None,
    device: torch.device | str = "cpu",
    **rules,
) -> Tensor | None:
    """The mask of attn_implementation="subquad", as transformers' models ask for it; None if every query sees all.

    Args:
        batch_size, q_length, kv_length: b rows, t queries, s slots for keys, those not yet filled included.
        q_offset, kv_offset: positions of the first query and of the first slot.
        attention_mask: (b, n) of bool, False at padding.
        allow_is_causal_skip: False if the rule is more than causal, e.g. of packed sequences.
        local_size: width of a window; the model gives it to the attention function too.
        config: the model's.
        device: of the mask.
        rules: what only `sdpa_mask` asks, among it the rule itself.
    """
    if local_size is not None and local_size == getattr(config, "attention_chunk_size", None):
        raise ValueError(
            "attn_implementation='subquad': attention in chunks is not supported; use attn_implementation='sdpa'"
        )
    n = int(q_offset) + q_length - int(kv_offset)  # the slots behind these are not yet filled
    starts = None
    if attention_mask is not None:
        starts = _starts(_keys_of(attention_mask, kv_offset, n))
    if not allow_is_causal_skip and q_length > 1:
        return _first_of_sequences(
            batch_size, q_length, n, q_offset, kv_offset, attention_mask, starts, local_size, device, rules
        )
    if starts is None and n == kv_length:
        return None
    starts = torch.zeros(batch_size, dtype=torch.int64, device=device) if starts is None else starts
    return starts[:, None, None, None].expand(-1, 1, 1, n)


class Segment(NamedTuple):
    """What a mask says about the tokens of one call: which are real, and which begin a sequence of their own."""

    real: Tensor  # (b, t) of bool
    begins: Tensor  # (b, t) of bool, False at the first token of the call

    @classmethod
    def of(cls, mask: Tensor, own: int, t: int) -> "Segment":
        """Read any implementation's mask.

        Args:
            mask: ours; (b, n) of bool or integers; (b, 1, t, n), of bool, or added to the scores.
            own: index of the first query's own key.
            t: number of queries.
        """
        if mask.ndim == 2:
            real = mask[:, -t:].bool()
            return cls(real, torch.zeros_like(real))
        if mask.dtype == torch.int64:
            first, keys = mask[:, 0, :, 0], torch.arange(own, own + t, device=mask.device)
            real = first <= keys
            begins = (first == keys) & (keys > own) if first.shape[1] > 1 else torch.zeros_like(real)
            return cls(real, begins & real & _after_real(real))
        visible = mask if mask.dtype == torch.bool else mask >= 0
        real = visible[:, 0].diagonal(own, -2, -1)[:, :t]  # a token that does not see itself is padding
        before = visible[:, 0, 1:].diagonal(own, -2, -1)[:, : t - 1]  # does it see the one before?
        begins = torch.cat([torch.zeros_like(real[:, :1]), ~before], dim=1)
        return cls(real, begins & real & _after_real(real))


def _after_real(real: Tensor) -> Tensor:
    """The tokens whose predecessor in this call is real."""
    return torch.cat([torch.zeros_like(real[:, :1]), real[:, :-1]], dim=1)


def _keys_of(attention_mask: Tensor, kv_offset: int, n: int) -> Tensor:
    """The padding (b, n) of the n keys; what a mask does not reach is real."""
    keys = attention_mask[:, int(kv_offset) : int(kv_offset) + n]
    missing = n - keys.shape[1]
    return torch.nn.functional.pad(keys, (0, missing), value=True) if missing else keys


def _starts(keys: Tensor) -> Tensor | None:
    """The first real key of each row (b,), n if there is none; None where all are real.

    Padding behind a row's last real token needs no mask: causality keeps it from the real ones. But a real token must
    not follow it.
    """
    if keys.all():
        return None
    return row_starts(keys, torch.zeros_like(keys[:, 0]), False, "attn_implementation='subquad'")


def _first_of_sequences(
    batch_size, q_length, n, q_offset, kv_offset, attention_mask, starts, local_size, device, rules
) -> Tensor:
    """The mask of sequences that lie side by side in a row, if that is what the rule says."""
    asked = dict(batch_size=batch_size, q_length=q_length, kv_length=n, q_offset=q_offset, kv_offset=kv_offset)
    visible = sdpa_mask(
        **asked, attention_mask=attention_mask, allow_is_causal_skip=False, device=device, **rules
    )[:, 0]  # fmt: skip
    keys, own = torch.arange(n, device=device), n - q_length
    queries = keys[own:, None]
    begins = torch.nn.functional.pad(~visible[:, 1:].diagonal(own, -2, -1)[:, : q_length - 1], (1, 0), value=False)
    first = torch.where(begins, queries[:, 0], 0).cummax(1).values  # (b, t)
    first = first if starts is None else torch.maximum(first, starts[:, None])
    nearest = queries - (n if local_size is None else local_size) + 1
    expected = (keys <= queries) & (keys >= torch.maximum(first[..., None], nearest))
    if attention_mask is not None:
        expected &= _keys_of(attention_mask, kv_offset, n)[:, None]
    if not torch.equal(expected, visible):
        raise ValueError(
            "attn_implementation='subquad': the mask is none of causal, window, left padding and packed sequences; "
            "use attn_implementation='sdpa'"
        )
    return first[:, None, :, None].expand(-1, 1, -1, n)
