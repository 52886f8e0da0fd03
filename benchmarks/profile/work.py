"""FLOP of an op by its equation, whatever computes it: the measure that is the same for all who compute the same."""

import math
from collections.abc import Callable
from itertools import pairwise

from subquad.kernels.polynomial_attention import num_features

from .calls import Sizes, Subject, borders_of

PASSES = ("forward", "backward")
CHANNEL_WISE = ("selective_scan", "linear_recurrence", "short_conv", "long_conv")  # which no matrix unit multiplies
UNITS = {"float32": "tf32", "float16": "half", "bfloat16": "half"}  # the fastest that multiply numbers of this dtype

METHOD = (
    "FLOP of a whole pass are those of the op's equation, a multiply and an add being two: attention by its visible "
    "pairs of a query and a key, five products backward for two forward; the linear family by the recurrence, two "
    "products of the state's size a token forward and five backward (the state computed again, dq, the state's "
    "gradient, dk, dv), of the delta rule three and eight, of the generalised one four and eleven; a recurrence of "
    "channels by one forward and two backward; a scan by two a state forward and six backward; a short filter by its "
    "taps; a long one by real transforms of length n = 2t, 2.5 n log2 n each. "
    "Exponentials, decays, gates and masks are not counted.",
)


def pass_flops(subject: Subject) -> dict[str, dict[str, int]] | None:
    """FLOP of each pass by what multiplies, "half", "tf32" or "float"; None for a mixer, which has no such formula."""
    if subject.is_mixer:
        return None
    counts = _COUNTS[subject.name](subject.sizes)
    unit = "float" if subject.name in CHANNEL_WISE else UNITS[subject.dtype]
    return {name: {unit: count} for name, count in zip(PASSES, counts, strict=True)}


def visible_pairs(t: int, s: int, window: int | None = None) -> int:
    """Pairs of a query and a key that it sees: the queries are the last t of s keys."""
    if window is None or window >= s:
        return t * (s - t) + t * (t + 1) // 2
    first = max(0, min(t, window - (s - t)))  # queries that see all keys up to their own, fewer than `window`
    return first * (s - t) + first * (first + 1) // 2 + (t - first) * window


def _attention(sizes: Sizes) -> tuple[int, int]:
    t, k = sizes["t"], sizes["k"]
    v = sizes.get("v") or k
    if "num_seqs" in sizes:
        pairs = sum(visible_pairs(n, n, sizes.get("window")) for n in _lengths(t, sizes["num_seqs"]))
    else:
        pairs = visible_pairs(t, sizes.get("s") or t, sizes.get("window"))
    pairs *= sizes["b"] * sizes["h"]
    return 2 * pairs * (k + v), 2 * pairs * (3 * k + 2 * v)


def _linear(sizes: Sizes) -> tuple[int, int]:
    return _recurrence(sizes, sizes["k"], sizes["v"] + bool(sizes.get("normalize", False)))


def _delta(sizes: Sizes) -> tuple[int, int]:
    """Forward the memory is asked, written and read."""
    return _recurrence(sizes, sizes["k"], sizes["v"], products=3)


def _generalized_delta(sizes: Sizes) -> tuple[int, int]:
    """Forward the memory is asked, written twice and read."""
    return _recurrence(sizes, sizes["k"], sizes["v"], products=4)


def _polynomial(sizes: Sizes) -> tuple[int, int]:
    features = num_features(sizes["k"], sizes.get("coefficients", (1.0, 1.0, 0.5)))
    return _recurrence(sizes, features, sizes["v"] + bool(sizes.get("normalize", True)))


def _recurrence(sizes: Sizes, rows: int, columns: int, products: int = 2) -> tuple[int, int]:
    """So many products of the state's size a token; backward all but the reading again, and two gradients of each."""
    product = 2 * sizes["b"] * sizes["t"] * sizes["h"] * rows * columns
    return products * product, (products - 1 + 2 * products) * product


def _selective_scan(sizes: Sizes) -> tuple[int, int]:
    """Forward h and y; backward h again, and the gradients of h, dt A, dt x, B and C."""
    product = 2 * sizes["b"] * sizes["t"] * sizes["d"] * sizes["m"]
    return 2 * product, 6 * product


def _linear_recurrence(sizes: Sizes) -> tuple[int, int]:
    product = 2 * sizes["b"] * sizes["t"] * sizes["d"]
    return product, 2 * product


def _short_conv(sizes: Sizes) -> tuple[int, int]:
    taps = 2 * sizes["b"] * sizes["t"] * sizes["d"] * sizes["w"]
    return taps, 2 * taps


def _long_conv(sizes: Sizes) -> tuple[int, int]:
    """Forward: x, the filter, and back. Backward: x and dy, the filter; dx and dfilter back."""
    n = 2 * sizes["t"]
    transform = 2.5 * n * math.log2(n)
    rows, channels = sizes["b"] * sizes["d"], sizes["d"]
    return round(transform * (2 * rows + channels)), round(transform * (3 * rows + 2 * channels))


def _lengths(t: int, num_seqs: int) -> list[int]:
    return [end - start for start, end in pairwise(borders_of(t, num_seqs))]


_COUNTS: dict[str, Callable[[Sizes], tuple[int, int]]] = {
    "causal_attention": _attention,
    "linear_attention": _linear,
    "polynomial_attention": _polynomial,
    "delta_rule": _delta,
    "generalized_delta_rule": _generalized_delta,
    "selective_scan": _selective_scan,
    "linear_recurrence": _linear_recurrence,
    "short_conv": _short_conv,
    "long_conv": _long_conv,
}
