"""One look for a mixer in every picture: colours that colour-blind readers can tell apart, and a marker beside them."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from ._records import Row

# Okabe & Ito 2008 without its yellow, which white paper swallows, and with Tol's wine and olive; the baseline is black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#999933")
MARKERS = (
    ("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"), ("P", "cross"),
    ("X", "x"), ("p", "pentagon"), ("h", "hexagon"),
)  # fmt: skip


class Look(NamedTuple):
    colour: str
    marker: str  # matplotlib's name
    symbol: str  # plotly's name


BASELINE = Look("#000000", "*", "star")


@dataclass(frozen=True)
class Curve:
    """Rows that one line joins: the widths of one variant or, where all have one width, the variants of one mixer."""

    name: str
    look: Look
    rows: list[Row]

    @property
    def baseline(self) -> bool:
        return self.look is BASELINE

    def labels(self) -> list[tuple[Row, str]]:
        """What stands beside the points: the variant at each, or the name of the curve at its last one."""
        if self.rows[0].has_width or len(self.rows) == 1:
            return [(self.rows[-1], f"{self.name} (baseline)" if self.baseline else self.name)]
        return [(row, " ".join([row.mixer, *map(str, row.variant.values())])) for row in self.rows]


def make_curves(rows: list[Row]) -> list[Curve]:
    """In the order of the table; all curves of one mixer look alike."""
    found = defaultdict(list)
    for row in rows:
        found[row.label if row.has_width else row.mixer].append(row)
    looks = _looks(rows)
    return [Curve(name, looks[same[0].mixer], same) for name, same in found.items()]


def _looks(rows: list[Row]) -> dict[str, Look]:
    """By the alphabet, so that a mixer looks the same in every report on the same mixers."""
    mixers = sorted({row.mixer for row in rows if not row.baseline})
    looks = {row.mixer: BASELINE for row in rows if row.baseline}
    for index, mixer in enumerate(mixers):
        # The numbers of colours and of markers have no common factor, so no pair returns before 72 mixers.
        looks[mixer] = Look(COLOURS[index % len(COLOURS)], *MARKERS[index % len(MARKERS)])
    return looks
