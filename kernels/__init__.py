"""The ops. Each is a folder with one public function and three implementations."""

from ._dispatch import BackendError, explain

OPS = (
    "causal_attention",
    "linear_attention",
    "polynomial_attention",
    "delta_rule",
    "generalized_delta_rule",
    "selective_scan",
    "linear_recurrence",
    "short_conv",
    "long_conv",
)

__all__ = ["OPS", "BackendError", "explain"]
