"""ReadingComprehension, Classification and WorkingMemory: named in the paper, their generators not published; ours."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .._draw import coins, shuffled, subset
from .._task import Batch, need, no_answers
from ._anchor import FIRST_KEY, AnchorTask, drawn, last_answer


@dataclass(frozen=True, kw_only=True)
class ReadingComprehension(AnchorTask):
    """Three anchors with a key behind each; then one anchor comes again (definition ours, name of arXiv 2401.08309).

    ReadingComprehension()
    inputs    2 36  3 67 50  1 43 92  3
    targets   .  .  .  .  .  .  .  . 67

    The anchors 1, 2 and 3 stand in random order at random places, with their keys behind them.
    """

    @property
    def shortest(self) -> int:
        return 7

    @property
    def chance(self) -> float:
        return 1 / 3

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs, at = self.filler(n, generator), _apart(n, 3, self.seq_len - 1, generator)
        anchors = shuffled(torch.tensor([[1, 2, 3]]).expand(n, -1), generator)
        keys = torch.cat([self.keys(place + 1, generator) for place in at.split(1, dim=1)], dim=1)
        inputs.scatter_(1, at, anchors).scatter_(1, at + 1, keys)
        asked = torch.randint(3, (n, 1), generator=generator)
        inputs[:, -1:] = anchors.gather(1, asked)
        return last_answer(inputs, keys.gather(1, asked))

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            answer[-1] = row[row.index(row[-1]) + 1]
        return targets


@dataclass(frozen=True, kw_only=True)
class Classification(AnchorTask):
    """Which of two examples is the last token nearer to (definition ours, after the run `ICL_near_value`)?

    Classification()
    inputs   25 40  1 67 80  2 43 92 70      40 is an example of class 1, 80 of class 2
    targets   .  .  .  .  .  .  .  .  2

    Two keys at random places have an anchor behind them, 1 or 2, that names their class. The last token is never as
    near to one as to the other; the keys differ.
    """

    @property
    def shortest(self) -> int:
        return 5

    @property
    def chance(self) -> float:
        return 1 / 2

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs, at = self.filler(n, generator), _apart(n, 2, self.seq_len - 1, generator)
        classes = shuffled(torch.tensor([[1, 2]]).expand(n, -1), generator)
        near_a = coins(n, generator).unsqueeze(1)
        a, b, asked = (torch.zeros(n, 1, dtype=torch.long) for _ in range(3))
        wrong = torch.ones(n, 1, dtype=torch.bool)
        while wrong.any():  # the class is decided first, so that both are equally likely; the keys are drawn for it
            a = self.keys(at[:, :1], generator).where(wrong, a)
            b = self.keys(at[:, 1:], generator).where(wrong, b)
            asked = torch.randint(FIRST_KEY, 100, (n, 1), generator=generator).where(wrong, asked)
            to_a, to_b = (asked - a).abs(), (asked - b).abs()
            wrong = (to_a == to_b) | ((to_a < to_b) != near_a)
        inputs.scatter_(1, at, torch.cat((a, b), dim=1)).scatter_(1, at + 1, classes)
        inputs[:, -1:] = asked
        return last_answer(inputs, classes[:, :1].where(near_a, classes[:, 1:]))

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            examples = [(abs(row[t - 1] - row[-1]), token) for t, token in enumerate(row) if token < FIRST_KEY]
            answer[-1] = min(examples)[1]
        return targets


@dataclass(frozen=True, kw_only=True)
class WorkingMemory(AnchorTask):
    """Keys behind the anchor 10, and the question which came when (definition ours, 2401.08309's name).

    WorkingMemory()
    inputs   25 10 40 67 80 10 43 92  2      1 asks for the first key, 2 for the second
    targets   .  .  .  .  .  .  .  . 43

    Fields:
        num_keys: keys to hold; the last token, 1 .. num_keys, says which is asked.
    """

    num_keys: int = 2

    def __post_init__(self):
        need(self, (1 <= self.num_keys <= 9, "num_keys must be in 1 .. 9"))
        super().__post_init__()

    @property
    def shortest(self) -> int:
        return max(4, 2 * self.num_keys + 1)

    @property
    def chance(self) -> float:
        return 1 / self.num_keys if self.num_keys > 1 else super().chance

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs, at = self.filler(n, generator), _apart(n, self.num_keys, self.seq_len - 1, generator)
        keys = torch.cat([self.keys(place + 1, generator) for place in at.split(1, dim=1)], dim=1)
        inputs.scatter_(1, at, 10).scatter_(1, at + 1, keys)
        asked = drawn(tuple(range(self.num_keys)), n, generator)
        inputs[:, -1:] = asked + 1
        return last_answer(inputs, keys.gather(1, asked))

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            keys = [row[t + 1] for t, token in enumerate(row[:-1]) if token == 10]
            answer[-1] = keys[row[-1] - 1]
        return targets


def _apart(n: int, count: int, end: int, generator: Generator) -> Tensor:
    """(n, count) ascending places before `end` of patterns of two tokens that do not touch each other's."""
    return subset(n, end - count, count, generator) + torch.arange(count)
