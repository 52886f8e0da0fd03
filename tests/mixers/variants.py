"""The mixers that the contract is tested on: every name, and the options that change what is carried."""

import pytest
import torch
from torch import Tensor

from subquad.mixers import Mixer, create

D_MODEL = 16
ROTATED = dict(feature_map="identity", normalize="head", rotary_base=10_000.0)

VARIANTS = {
    "attention": ("attention", dict()),
    "attention-grouped-conv": ("attention", dict(num_kv_heads=2, head_dim=6, conv_width=4)),
    "attention-nowhere": ("attention", dict(num_heads=1, rotary_base=None)),
    "sliding_window": ("sliding_window", dict(window=5, num_heads=2)),
    "sliding_window-itself": ("sliding_window", dict(window=1)),
    "sink_window": ("sink_window", dict(sinks=2, window=3, num_heads=2)),
    "sink_window-grouped": ("sink_window", dict(sinks=5, window=4, num_kv_heads=1, head_dim=6)),
    "linear_attention": ("linear_attention", dict(num_heads=2)),
    "linear_attention-rotated": ("linear_attention", ROTATED),
    "linear_attention-hedgehog": ("linear_attention", dict(feature_map="hedgehog", conv_width=3)),
    "hedgehog_window": ("hedgehog_window", dict(window=3, num_heads=2)),
    "hedgehog_window-grouped": ("hedgehog_window", dict(window=5, num_kv_heads=2, head_dim=6)),
    "hedgehog_window-sinks": ("hedgehog_window", dict(window=4, sinks=2)),
    "based": ("based", dict(num_heads=2, feature_dim=5)),
    "based-conv": ("based", dict(num_heads=1, feature_dim=4, conv_width=2)),
    "rebased": ("rebased", dict(num_heads=2, feature_dim=6)),
    "retention": ("retention", dict(num_heads=2)),
    "gla": ("gla", dict(num_heads=2)),
    "gla-conv": ("gla", dict(expand_k=1.0, conv_width=3)),
    "hgrn2": ("hgrn2", dict(num_heads=2)),
    "hgrn2-bounded": ("hgrn2", dict(lower_bound=0.5, conv_width=2)),
    "mlstm": ("mlstm", dict(num_heads=2)),
    "mlstm-conv": ("mlstm", dict(conv_width=3)),
    "mamba2": ("mamba2", dict(num_heads=2, d_state=8)),
    "mamba2-no-conv": ("mamba2", dict(d_state=4, conv_width=None)),
    "delta_net": ("delta_net", dict(num_heads=2)),
    "delta_net-no-conv": ("delta_net", dict(conv_width=None, negative_eigenvalues=True)),
    "gated_delta_net": ("gated_delta_net", dict(num_heads=2)),
    "kimi_delta": ("kimi_delta", dict(num_heads=2)),
    "rwkv7": ("rwkv7", dict(num_heads=2, rank=4)),
    "rwkv7-no-shift": ("rwkv7", dict(rank=3, token_shift=False)),
    "mamba": ("mamba", dict(d_state=4)),
    "mamba-no-conv": ("mamba", dict(d_state=3, dt_rank=5, conv_width=None)),
    "rg_lru": ("rg_lru", dict()),
    "rg_lru-wide": ("rg_lru", dict(expand=2, num_heads=2, conv_width=None)),
    "base_conv": ("base_conv", dict()),
    "base_conv-long": ("base_conv", dict(conv_width=None, max_length=48)),
    "base_conv-implicit": ("base_conv", dict(conv_width=None, max_length=48, implicit=True)),
    "s4d": ("s4d", dict(d_state=6)),
    "h3": ("h3", dict(d_state=6)),
    "h3-narrow": ("h3", dict(d_state=2, shift=1)),
    "hyena": ("hyena", dict(max_length=48, hidden_dim=8)),
    "hyena-no-conv": ("hyena", dict(max_length=48, hidden_dim=8, conv_width=None)),
}

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str, dtype: torch.dtype = torch.float64, backend: str = "torch") -> Mixer:
    """The same weights for every backend; in float64 they are drawn as such."""
    name, options = VARIANTS[variant]
    torch.manual_seed(0)
    return create(name, D_MODEL, **options, backend=backend, dtype=dtype)


def tokens(b: int = 2, t: int = 13, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(b, t, D_MODEL, generator=generator, dtype=torch.float64).to(dtype)
