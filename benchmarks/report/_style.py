"""One look for a mixer in every picture: colours that colour-blind readers can tell apart, and a marker beside them."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from ._records import Row, Test

# Okabe & Ito 2008 without its yellow, which white paper swallows, and with Tol's purple and olive; the baseline is
# black, on dark ground white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#AA4499", "#999933")
MARKERS = (
    ("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"), ("P", "cross"),
    ("X", "x"), ("p", "pentagon"), ("h", "hexagon"),
)  # fmt: skip


class Look(NamedTuple):
    colour: str
    marker: str  # matplotlib's name
    symbol: str  # plotly's name


BASELINE = Look("#000000", "*", "star")

# Their order decides the looks, so that a mixer has one in every report. Names are repeated here, for a report is made
# without torch; a new one goes to the end.
MIXERS = (
    "attention", "sliding_window", "sink_window", "linear_attention", "hedgehog_window", "based", "rebased",
    "retention", "gla", "hgrn2", "mlstm", "mamba2", "delta_net", "gated_delta_net", "kimi_delta", "rwkv7", "mamba",
    "rg_lru", "hyena", "s4d", "base_conv", "h3", "hybrid",
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Rows that one line joins: the widths of one variant or, where all have one width, the variants of one mixer."""

    name: str
    look: Look
    rows: list[Row]

    @property
    def baseline(self) -> bool:
        return self.look is BASELINE

    def by_width(self, test: Test) -> dict[int, float]:
        """Width -> accuracy in %, ascending."""
        return {row.d_model: 100 * row.segments[test] for row in sorted(self.rows, key=lambda row: row.d_model)}

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
    """By the place in MIXERS; those of other names follow in the order of the alphabet."""
    others = sorted({row.mixer for row in rows} - set(MIXERS))
    place = {mixer: index for index, mixer in enumerate((*MIXERS, *others))}
    # The numbers of colours and of markers have no common factor, so no pair returns before 72 mixers.
    looks = {
        mixer: Look(COLOURS[index % len(COLOURS)], *MARKERS[index % len(MARKERS)]) for mixer, index in place.items()
    }
    return looks | {row.mixer: BASELINE for row in rows if row.baseline}
