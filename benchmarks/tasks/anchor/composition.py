"""Composition: two anchors, applied one after the other; Synonym: one of them under another name."""

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Generator, Tensor

from .._task import Batch, Task, need, no_answers
from ._anchor import FIRST_KEY, AnchorTask, by_anchor, drawn, last_answer

OFFSETS = {1: 5, 2: 1, 3: -2, 4: -8, 9: -2}  # 9 means what 3 means
WHICH = ("seen", "held_out")


@dataclass(frozen=True, kw_only=True)
class Composition(AnchorTask):
    """a, b, x -> g(g(x; b); a) with g(x; 1) = x + 5, g(x; 2) = x + 1, g(x; 3) = x - 2, g(x; 4) = x - 8 (2401.08309).

    Composition(which="held_out")
    inputs   25 36  3  4 67 44 43 92 87      67 - 8 - 2
    targets   .  .  .  .  .  .  .  . 57

    Fields:
        held_out: ordered pairs of anchors that are never trained on; of 1 .. 4.
        which: "seen" pairs, or "held_out".
        key_first: x, a, b instead of a, b, x.
    """

    held_out: tuple[tuple[int, int], ...] = ((3, 4),)
    which: str = "seen"
    key_first: bool = False

    def __post_init__(self):
        super().__post_init__()
        need(
            self,
            (self.which in WHICH, f"which must be one of {', '.join(WHICH)}"),
            (bool(self.pairs) and set(sum(self.pairs, ())) <= set(OFFSETS), "pairs must be of the anchors 1 .. 4"),
        )

    @property
    def tests(self) -> tuple[Task, ...]:
        """Keys that were trained on and held-out ones with pairs that were trained on; and held-out keys and pairs."""
        return (*super().tests, replace(self, split="test", which="held_out"))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs that are drawn, equally likely; one that is named twice twice as likely."""
        everything = product(range(1, 5), repeat=2)
        return self.held_out if self.which == "held_out" else tuple(p for p in everything if p not in self.held_out)

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs, at = self.filler(n, generator), self.places(n, 3, generator)
        which = drawn(tuple(range(len(self.pairs))), n, generator).squeeze(1)
        anchors = torch.tensor(self.pairs)[which]  # (n, 2)
        key_at = at if self.key_first else at + 2
        keys = self.keys(key_at, generator)
        first = at + int(self.key_first)
        inputs.scatter_(1, torch.cat((first, first + 1), dim=1), anchors).scatter_(1, key_at, keys)
        return last_answer(inputs, keys + by_anchor(OFFSETS)[anchors].sum(dim=1, keepdim=True))

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            first, second = (t for t, token in enumerate(row) if token < FIRST_KEY)
            key = row[first - 1] if self.key_first else row[second + 1]
            answer[-1] = key + OFFSETS[row[second]] + OFFSETS[row[first]]
        return targets


@dataclass(frozen=True, kw_only=True)
class Synonym(Composition):
    """Composition in which 9 means what 3 means; does what is learned of 3 hold for 9 (arXiv 2401.08309)?

    Synonym(which="held_out")
    inputs   25 36  9  4 67 44 43 92 87      67 - 8 - 2
    targets   .  .  .  .  .  .  .  . 57

    Trained are 9 with 1 and 2, the pairs of 1, 2 and 4, and those of 3 with 1, 2 and 4, the last `repeats` times as
    often; held out are 9 with 4.

    Fields:
        repeats: weight of the pairs with 3.
    """

    held_out: tuple[tuple[int, int], ...] = ((4, 9), (9, 4))
    repeats: int = 3

    def __post_init__(self):
        super().__post_init__()
        need(self, (self.repeats >= 1, "repeats must be at least 1"))

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        if self.which == "held_out":
            return self.held_out
        with_9 = ((1, 9), (2, 9), (9, 1), (9, 2))
        others = ((1, 2), (1, 4), (2, 1), (4, 1), (2, 4), (4, 2))
        with_3 = ((1, 3), (2, 3), (4, 3), (3, 1), (3, 2), (3, 4))
        return with_9 + others + self.repeats * with_3
