"""BAPO's easy problems: a constant number of bits must pass from the first part of the input to the second.

Source: Schnabel et al. 2025 (arXiv 2505.08140). Sizes and laws are theirs; where the published generator differs, it
is said. Numbers are tokens here; the paper asks language models in words.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._draw import coins, distinct
from ._task import Batch, Task, need, no_answers


@dataclass(frozen=True, kw_only=True)
class Index(Task):
    """The element of a list at an index: (0, 1)-BAPO.

    Index(length=3, num_values=5)
    inputs    4  0  2  6      6 is the index 1: indices are numbered behind the values
    targets   .  .  .  0

    Fields:
        length: elements, all different. num_values: numbers that they may be. (The published generator gives every
            example the same list.)
    """

    length: int = 50
    num_values: int = 200

    def __post_init__(self):
        need(self, (1 <= self.length <= self.num_values, "length must be in 1 .. num_values"))

    @property
    def seq_len(self) -> int:
        return self.length + 1

    @property
    def vocab_size(self) -> int:
        return self.num_values + self.length

    @property
    def chance(self) -> float:
        return 1 / self.length

    def sample(self, n: int, generator: Generator) -> Batch:
        elements = distinct(n, 0, self.num_values, self.length, generator)
        index = torch.randint(self.length, (n, 1), generator=generator)
        inputs = torch.cat((elements, self.num_values + index), dim=1)
        return Batch.of(inputs, self.solve(inputs))

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        targets[:, -1:] = inputs.gather(1, inputs[:, -1:] - self.num_values)
        return targets


@dataclass(frozen=True, kw_only=True)
class YesOrNo(Task):
    """One question, due at the last position; yes and no are the last two ids, equally likely."""

    @property
    def yes(self) -> int:
        return self.vocab_size - 1

    @property
    def chance(self) -> float:
        return 0.5

    def said(self, inputs: Tensor, answers: Tensor) -> Batch:
        """Answers (n,) of True for yes."""
        targets = no_answers(inputs)
        targets[:, -1] = self.yes - 1 + answers.long()
        return Batch.of(inputs, targets)

    def solve(self, inputs: Tensor) -> Tensor:
        return self.said(inputs, torch.tensor([self.decide(row) for row in inputs.tolist()])).targets

    @abstractmethod
    def decide(self, row: list[int]) -> bool:
        """The answer to one row."""


@dataclass(frozen=True, kw_only=True)
class Equality(YesOrNo):
    """Are two lists of bits equal? (1, 1)-BAPO.

    Equality(length=3)
    inputs    0  1  1  2  1  0  1      2 parts the lists
    targets   .  .  .  .  .  .  3      no

    Where they differ, two unequal elements have changed places; every list has both bits.

    Fields:
        length: elements of each list.
    """

    length: int = 50

    vocab_size = 5

    def __post_init__(self):
        need(self, (self.length >= 2, "length must be at least 2"))

    @property
    def seq_len(self) -> int:
        return 2 * self.length + 1

    def sample(self, n: int, generator: Generator) -> Batch:
        left = torch.randint(2, (n, self.length), generator=generator)
        places = distinct(n, 0, self.length, 2, generator)
        left.scatter_(1, places, torch.tensor([[0, 1]]).expand(n, -1))
        equal = coins(n, generator)
        right = left.where(equal.unsqueeze(1), left.scatter(1, places, torch.tensor([[1, 0]]).expand(n, -1)))
        return self.said(torch.cat((left, torch.full((n, 1), 2), right), dim=1), equal)

    def decide(self, row: list[int]) -> bool:
        return row[: self.length] == row[self.length + 1 :]


@dataclass(frozen=True, kw_only=True)
class Disjointness(YesOrNo):
    """Have two sets nothing in common, each given as bits that say what it holds? (1, 1)-BAPO.

    Disjointness(length=3)
    inputs    0  1  1  2  1  0  1      both hold the third
    targets   .  .  .  .  .  .  3      no

    Sets that are not disjoint share one element; of the rest neither, the first, or the second set holds each, equally
    likely. (The published generator makes the same places of all its negative examples shared, as many as there are.)

    Fields:
        length: elements that the sets may hold.
    """

    length: int = 50

    vocab_size = 5

    def __post_init__(self):
        need(self, (self.length >= 1, "length must be at least 1"))

    @property
    def seq_len(self) -> int:
        return 2 * self.length + 1

    def sample(self, n: int, generator: Generator) -> Batch:
        holder = torch.randint(3, (n, self.length), generator=generator)
        disjoint = coins(n, generator)
        shared = torch.randint(self.length, (n, 1), generator=generator)
        holder.scatter_(1, shared, holder.gather(1, shared).where(disjoint.unsqueeze(1), 3))
        return self.said(torch.cat((holder % 2, torch.full((n, 1), 2), holder // 2), dim=1), disjoint)

    def decide(self, row: list[int]) -> bool:
        return not any(a and b for a, b in zip(row[: self.length], row[self.length + 1 :], strict=True))


@dataclass(frozen=True, kw_only=True)
class Match2(YesOrNo):
    """Is some x_i the opposite of the last number? (0, 1)-BAPO.

    Match2(length=3, largest=4)
    inputs    5  1  2  6      ids 0 .. 3 are -4 .. -1 and 4 .. 7 are 1 .. 4: 2 -3 -2 and 3
    targets   .  .  .  9      yes

    All numbers differ. (The published generator also draws 0, and the opposite of its lowest number lies outside of
    its range, so that it tells the answer.)

    Fields:
        length: numbers before the last. largest: they are in -largest .. -1 and 1 .. largest.
    """

    length: int = 50
    largest: int = 500

    def __post_init__(self):
        need(self, (1 <= self.length <= 2 * self.largest - 3, "length must be in 1 .. 2 * largest - 3"))

    @property
    def seq_len(self) -> int:
        return self.length + 1

    @property
    def vocab_size(self) -> int:
        return 2 * self.largest + 2

    def sample(self, n: int, generator: Generator) -> Batch:
        numbers = distinct(n, 0, 2 * self.largest, self.length + 3, generator)
        *_, a, b, asked = numbers.split(1, dim=1)
        opposite = 2 * self.largest - 1 - asked
        spare = a.where(a != opposite, b)  # stands nowhere, and is not the opposite
        inputs = numbers[:, : self.length]
        inputs = spare.where(inputs == opposite, inputs)
        yes = coins(n, generator)
        place = torch.randint(self.length, (n, 1), generator=generator)
        inputs = inputs.scatter(1, place, opposite.where(yes.unsqueeze(1), inputs.gather(1, place)))
        return self.said(torch.cat((inputs, asked), dim=1), yes)

    def decide(self, row: list[int]) -> bool:
        return 2 * self.largest - 1 - row[-1] in row[:-1]
