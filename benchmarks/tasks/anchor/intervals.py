"""MultiAnchor and MultiInterval: is a function learned on some keys applied to others?"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .._task import Batch, need, no_answers
from ._anchor import END_OF_KEYS, FIRST_KEY, AnchorTask, drawn, last_answer

CANDIDATES = torch.arange(FIRST_KEY, END_OF_KEYS)


@dataclass(frozen=True, kw_only=True)
class MultiAnchor(AnchorTask):
    """3, x -> x is trained on one interval of keys and 4, x -> x + 1 on another; tested are the swapped (2401.08309).

    MultiAnchor()
    inputs   25 36 50 67  4 74 43 92 87
    targets   .  .  .  .  .  .  .  . 75

    Fields:
        intervals: of 3 and of 4, each (low, high), high left out. Disjoint as by default nothing carries over; with
            ((20, 70), (50, 100)) some does.
    """

    intervals: tuple[tuple[int, int], tuple[int, int]] = ((20, 60), (60, 100))

    def __post_init__(self):
        super().__post_init__()
        wide = all(
            low >= FIRST_KEY and high <= END_OF_KEYS and high - low >= self.seq_len - 1 for low, high in self.intervals
        )
        need(
            self,
            (len(self.intervals) == 2, "intervals must be two"),
            (wide, f"intervals must lie in {FIRST_KEY} .. {END_OF_KEYS} and be of at least seq_len - 1 keys"),
        )

    @property
    def chance(self) -> float:
        return 1 / min(self.num_keys(low, high) for low, high in self.intervals)

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs, at = self.filler(n, generator), self.places(n, 2, generator)
        anchors = drawn((3, 4), n, generator)
        intervals = self.intervals if self.split == "train" else self.intervals[::-1]
        allowed = torch.stack([(low <= CANDIDATES) & (high > CANDIDATES) for low, high in intervals])
        keys = self.keys(at + 1, generator, allowed[anchors.squeeze(1) - 3])
        inputs.scatter_(1, at, anchors).scatter_(1, at + 1, keys)
        return last_answer(inputs, keys + anchors - 3)

    def solve(self, inputs: Tensor) -> Tensor:
        return _solve(inputs, {3: 0, 4: 1})


@dataclass(frozen=True, kw_only=True)
class MultiInterval(AnchorTask):
    """a, x -> x + a for a = 1 .. 10; in training a never sees its own interval of eight keys (arXiv 2401.08309).

    MultiInterval(split="test")
    inputs   25 36 50 67  2 29 43 92 87      keys 28 .. 35 are held out for 2
    targets   .  .  .  .  .  .  .  . 31

    Held out for a are 20 + 8 (a - 1) .. 27 + 8 (a - 1); in testing a sees them alone. Keys are held out by position
    too, as published, so that one key for each anchor and position is left to test.
    """

    @property
    def chance(self) -> float:
        """Of a guess that knows where the key stands but not the anchor."""
        return 1 / 10 if self.split == "test" else 1 / (self.num_keys(20, 100) - 8)

    def __post_init__(self):
        super().__post_init__()
        need(self, (self.seq_len <= 9, "seq_len must be at most 9, or some anchors could not be tested"))

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs, at = self.filler(n, generator), self.places(n, 2, generator)
        anchors = drawn(tuple(range(1, 11)), n, generator)
        own = anchors - 1 == (CANDIDATES - FIRST_KEY) // 8
        keys = self.keys(at + 1, generator, own if self.split == "test" else ~own)
        inputs.scatter_(1, at, anchors).scatter_(1, at + 1, keys)
        return last_answer(inputs, keys + anchors)

    def solve(self, inputs: Tensor) -> Tensor:
        return _solve(inputs, {a: a for a in range(1, 11)})


def _solve(inputs: Tensor, offset: dict[int, int]) -> Tensor:
    targets = no_answers(inputs)
    for row, answer in zip(inputs.tolist(), targets, strict=True):
        ((at, anchor),) = [(t, token) for t, token in enumerate(row) if token < FIRST_KEY]
        answer[-1] = row[at + 1] + offset[anchor]
    return targets
