"""Identity, FrequencyTest, TenAnchors and StatisticalOutput: one anchor with one key."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .._draw import coins
from .._task import Batch, need, no_answers
from ._anchor import FIRST_KEY, AnchorTask, by_anchor, drawn, last_answer


@dataclass(frozen=True, kw_only=True)
class SingleAnchor(AnchorTask):
    """An anchor a and a key x beside it: the answer is x + offset of a.

    Fields:
        offsets: pairs (anchor, offset); anchors are equally likely.
        distance: where the key stands, counted from the anchor: 1 behind it, -1 before it.
        cyclic: the anchor may stand anywhere, and the key's position is taken modulo seq_len.
    """

    offsets: tuple[tuple[int, int], ...] = ((3, 0),)
    distance: int = 1
    cyclic: bool = False

    def __post_init__(self):
        super().__post_init__()
        need(
            self,
            (0 < abs(self.distance) < self.seq_len, "distance must not be 0, and shorter than seq_len"),
            (all(0 < anchor < FIRST_KEY for anchor, _ in self.offsets), f"anchors must be in 1 .. {FIRST_KEY - 1}"),
        )

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs, anchors = self.filler(n, generator), drawn(tuple(dict(self.offsets)), n, generator)
        if self.cyclic:
            at = torch.randint(self.seq_len, (n, 1), generator=generator)
        else:
            at = self.places(n, abs(self.distance) + 1, generator) + max(0, -self.distance)
        key_at = (at + self.distance) % self.seq_len
        keys = self.keys(key_at, generator)
        inputs.scatter_(1, at, anchors).scatter_(1, key_at, keys)
        return last_answer(inputs, keys + by_anchor(dict(self.offsets))[anchors])

    def solve(self, inputs: Tensor) -> Tensor:
        targets, offset = no_answers(inputs), dict(self.offsets)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            ((at, anchor),) = [(t, token) for t, token in enumerate(row) if token < FIRST_KEY]
            answer[-1] = row[(at + self.distance) % self.seq_len] + offset[anchor]
        return targets


@dataclass(frozen=True, kw_only=True)
class Identity(SingleAnchor):
    """The key beside the anchor 3 (arXiv 2401.08309): 3, x -> x.

    Identity()
    inputs   25 36 50 67  3 44 43 92 87
    targets   .  .  .  .  .  .  .  . 44
    """


@dataclass(frozen=True, kw_only=True)
class FrequencyTest(SingleAnchor):
    """Two anchors of one meaning, or of two: the test of the frequency principle (arXiv 2401.08309).

    FrequencyTest()
    inputs   25 36 50 67  4 44 43 92 87      3, x -> x and 4, x -> x + 1
    targets   .  .  .  .  .  .  .  . 45

    With offsets ((3, 0), (4, 0)) the target is of low frequency, and learned sooner.
    """

    offsets: tuple[tuple[int, int], ...] = ((3, 0), (4, 1))


@dataclass(frozen=True, kw_only=True)
class TenAnchors(SingleAnchor):
    """Ten functions at once (arXiv 2401.08309; the published generator forgets to write the key).

    TenAnchors()
    inputs   25 36 50 67  3 44 43 92 87      3, x -> x - 5
    targets   .  .  .  .  .  .  .  . 39
    """

    offsets: tuple[tuple[int, int], ...] = tuple(enumerate((-4, 3, -5, -2, 1, 4, -3, -1, 2, 5), start=1))


@dataclass(frozen=True, kw_only=True)
class StatisticalOutput(Identity):
    """The key x with probability p, else x + 1: a model's softmax must come to say p (arXiv 2401.08309).

    StatisticalOutput()
    inputs   25 36 50 67  3 44 43 92 87      the likelier answer; one of five is 45
    targets   .  .  .  .  .  .  .  . 44

    Fields:
        p: probability of x itself.
    """

    p: float = 0.8

    def __post_init__(self):
        super().__post_init__()
        need(self, (0 <= self.p <= 1, "p must be in [0, 1]"))

    @property
    def ceiling(self) -> float:
        return max(self.p, 1 - self.p)

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs, targets, _ = super().sample(n, generator)
        targets[:, -1] += (~coins(n, generator, self.p)).long()
        return Batch.of(inputs, targets)

    def solve(self, inputs: Tensor) -> Tensor:
        targets = super().solve(inputs)
        targets[:, -1] += int(self.p < 0.5)
        return targets
