"""Efficient sequence mixers: ops, modules and the benchmarks that judge them."""

from subquad.kernels import OPS, BackendError, explain
from subquad.kernels.causal_attention import causal_attention
from subquad.kernels.delta_rule import delta_rule
from subquad.kernels.generalized_delta_rule import generalized_delta_rule
from subquad.kernels.levers import cpu_levers
from subquad.kernels.linear_attention import linear_attention
from subquad.kernels.linear_recurrence import linear_recurrence
from subquad.kernels.long_conv import long_conv
from subquad.kernels.polynomial_attention import polynomial_attention
from subquad.kernels.selective_scan import selective_scan
from subquad.kernels.short_conv import short_conv
from subquad.mixers import MIXERS, build_layers, create
from subquad.swapping import SwapReport, swap, unswap

__all__ = [
    "MIXERS",
    "OPS",
    "BackendError",
    "SwapReport",
    "build_layers",
    "causal_attention",
    "cpu_levers",
    "create",
    "delta_rule",
    "explain",
    "generalized_delta_rule",
    "linear_attention",
    "linear_recurrence",
    "long_conv",
    "polynomial_attention",
    "selective_scan",
    "short_conv",
    "swap",
    "unswap",
]


def __getattr__(name: str):
    """What needs transformers, which takes seconds to import, comes when it is asked for."""
    if name in ("linearize", "layer_costs", "Distillation"):
        import subquad.linearizing

        return getattr(subquad.linearizing, name)
    raise AttributeError(f"module 'subquad' has no attribute {name!r}")
