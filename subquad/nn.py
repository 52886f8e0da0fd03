"""Mixers in the place of torch.nn's attention, for plain PyTorch models."""

from typing import Any

import torch
from torch import Tensor, nn

from subquad.mixers import State
from subquad.swapping._grafts import GraftedMixer, Heads, row_starts

__all__ = ["MultiheadMixer"]


class MultiheadMixer(nn.Module):
    """A causal mixer that is built and called as nn.MultiheadAttention is, for self-attention.

    x -> q, k, v -> the mixer, as far as it can use them -> out. What the mixer has beside these is its own.

    Args:
        embed_dim: width of the input and of the output.
        num_heads: heads; divides embed_dim.
        bias: of the projections, of q, k and v and of the output.
        batch_first: tokens are (b, t, d); else (t, b, d).
        mixer: a key of MIXERS.
        options: of the mixer.

    Raises:
        ValueError: an unknown mixer or option, or one that does not fit.
    """

    # nn.TransformerEncoderLayer asks for these to see whether its fast path may run softmax in our place: it may not.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        batch_first: bool = False,
        *,
        mixer: str = "attention",
        device=None,
        dtype=None,
        **options: Any,
    ):
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"MultiheadMixer: num_heads must divide embed_dim, got {num_heads} and {embed_dim}")
        factory = dict(device=device, dtype=dtype)
        self.embed_dim, self.num_heads, self.batch_first = embed_dim, num_heads, batch_first
        self.qkv_proj = nn.Linear(embed_dim, 3 * embed_dim, bias=bias, **factory)
        self.grafted = GraftedMixer(
            mixer, embed_dim, Heads(num_heads, num_heads, embed_dim // num_heads), options | factory
        )
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **factory)

    @classmethod
    def of(cls, attention: nn.MultiheadAttention, mixer: str, **options: Any) -> "MultiheadMixer":
        """One with the weights of an attention."""
        refused = {
            "keys or values of another width": not attention._qkv_same_embed_dim,
            "add_bias_kv": attention.bias_k is not None,
            "add_zero_attn": attention.add_zero_attn,
        }
        for what, has in refused.items():
            if has:
                raise ValueError(f"MultiheadMixer: an attention with {what} is not self-attention alone")
        weight, bias = attention.in_proj_weight, attention.in_proj_bias is not None
        new = cls(
            attention.embed_dim, attention.num_heads, bias, attention.batch_first, mixer=mixer, device=weight.device,
            dtype=weight.dtype, **options,
        )  # fmt: skip
        new.qkv_proj.weight, new.out_proj = weight, attention.out_proj
        if bias:
            new.qkv_proj.bias = attention.in_proj_bias
        return new.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The signature of nn.MultiheadAttention. The mixer is causal, whatever `is_causal` says.

        Args:
            query, key, value: the same tokens, (b, t, d) with batch_first, else (t, b, d).
            key_padding_mask: (b, t), True (or -inf) at padding, on one side of a row.
            need_weights: return the mixing matrix beside the output.
            attn_mask: None or the causal one, (t, t), True (or -inf) where not to look.
            average_attn_weights: of the heads; else of each.
            is_causal: a hint that attention needs and a mixer does not.

        Returns:
            The output, and (b, t, t) or (b, h, t, t) weights or None.

        Raises:
            ValueError: tokens that are not the same, or masks of another kind.
        """
        if key is not query or value is not query:
            raise ValueError("MultiheadMixer: mixers are for self-attention: query, key and value must be one tensor")
        x = query if self.batch_first else query.transpose(0, 1)
        if x.ndim != 3:
            raise ValueError(f"MultiheadMixer: tokens must have a batch, got shape {tuple(query.shape)}")
        self._check_mask(attn_mask, x.shape[1])
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # each (b, t, h, k)
        real = None if key_padding_mask is None else ~_forbidden(key_padding_mask)
        if real is None or real.all():
            y, _ = self.grafted.run(x, q, k, v, State())
        else:
            starts = row_starts(real, torch.zeros_like(real[:, 0]), False, "MultiheadMixer")
            y, _ = self.grafted.run_padded(x, q, k, v, starts, State())
        weights = None
        if need_weights:
            weights = self.grafted.mixing_matrix(x, q, k, v)
            weights = weights.mean(1) if average_attn_weights else weights
        y = self.out_proj(y.flatten(2))
        return (y if self.batch_first else y.transpose(0, 1)), weights

    @staticmethod
    def _check_mask(attn_mask: Tensor | None, t: int) -> None:
        if attn_mask is None:
            return
        causal = torch.ones(t, t, dtype=torch.bool, device=attn_mask.device).triu(1)
        if attn_mask.shape[-2:] != causal.shape or not (_forbidden(attn_mask) == causal).all():
            raise ValueError(
                f"MultiheadMixer: attn_mask must be None or the causal mask ({t}, {t}), got another of shape "
                f"{tuple(attn_mask.shape)}"
            )


def _forbidden(mask: Tensor) -> Tensor:
    """Where nn.MultiheadAttention would not look."""
    return mask if mask.dtype == torch.bool else mask == -torch.inf
