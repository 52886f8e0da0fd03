"""The costs against which accuracy is drawn: what they are called, how a row pays them, and readable ticks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ._records import Row
from ._tables import format_bytes, format_count, longest_context

MAX_TICKS = 6
MARGIN = 1.6  # factor by which an axis goes past its outermost points


@dataclass(frozen=True)
class Cost:
    """An axis with a logarithmic scale.

    Args:
        title: of the axis.
        of: what a row pays, None where it was not measured.
        show: how a value is written.
        grid: the values that a tick may have between two bounds.
    """

    title: str
    of: Callable[[Row], float | None]
    show: Callable[[float], str]
    grid: Callable[[float, float], list[float]]

    def range(self, rows: list[Row]) -> tuple[float, float]:
        """From below the cheapest row to above the dearest."""
        values = [value for value in map(self.of, rows) if value is not None]
        return min(values) / MARGIN, max(values) * MARGIN

    def ticks(self, rows: list[Row]) -> list[float]:
        """At most six round values inside the range."""
        values = self.grid(*self.range(rows))
        return values[:: math.ceil(len(values) / MAX_TICKS)]


def costs(rows: list[Row]) -> list[Cost]:
    """Bytes of state and, where measured, tokens trained a second and decoded after the longest common context."""
    found = [Cost("bytes of state of a sequence", lambda row: row.state_bytes, format_bytes, _powers_of_two)]
    if any(row.tokens_per_second("train") for row in rows):
        speed = Cost("tokens trained a second", _train_speed, format_count, _round_decimals)
        found.append(speed)
    context = longest_context(rows)
    if context is None:
        return found

    def decode_speed(row: Row) -> float | None:
        return 1e3 / row.decode[context] if context in row.decode else None

    title = f"tokens decoded a second after {context:,}"
    return [*found, Cost(title, decode_speed, format_count, _round_decimals)]


def _train_speed(row: Row) -> float | None:
    return row.tokens_per_second("train")


def _powers_of_two(low: float, high: float) -> list[float]:
    return [2.0**k for k in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]


def _round_decimals(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; every digit where that gives too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    coarse = [digit * 10.0**k for k in decades for digit in (1, 2, 5) if low <= digit * 10.0**k <= high]
    fine = [digit * 10.0**k for k in decades for digit in range(1, 10) if low <= digit * 10.0**k <= high]
    return coarse if len(coarse) > 1 else fine
