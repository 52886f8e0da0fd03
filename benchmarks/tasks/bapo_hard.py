"""BAPO's hard problems: no constant number of bits suffices. Source and conventions as in `bapo_easy`."""

from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Generator, Tensor

from ._draw import coins, distinct, shuffled
from ._task import Batch, Task, need, no_answers
from .bapo_easy import YesOrNo


@dataclass(frozen=True, kw_only=True)
class Majority(Task):
    """Which bit is more frequent?

    Majority(length=4)
    inputs    1  0  0  1  0
    targets   .  .  .  .  0

    Half of `length` bits are ones; one bit more decides.

    Fields:
        length: an even number; the sequence is longer by one.
    """

    length: int = 50

    vocab_size = 2

    def __post_init__(self):
        need(self, (self.length >= 2 and self.length % 2 == 0, "length must be even and at least 2"))

    @property
    def seq_len(self) -> int:
        return self.length + 1

    @property
    def chance(self) -> float:
        return 0.5

    def sample(self, n: int, generator: Generator) -> Batch:
        halves = (torch.arange(self.length) % 2).expand(n, -1)
        inputs = shuffled(torch.cat((halves, torch.randint(2, (n, 1), generator=generator)), dim=1), generator)
        return Batch.of(inputs, self.solve(inputs))

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        targets[:, -1] = (2 * inputs.sum(dim=1) > self.length).long()
        return targets


@dataclass(frozen=True, kw_only=True)
class Match3(YesOrNo):
    """Do two of the numbers and the last one sum to 0?

    Match3(length=3, largest=4)
    inputs    5  1  2 10      the numbers 2 -3 -2, and 2
    targets   .  .  . 17      no: -1, 0 and -5 are the sums

    Ids 0 .. 2 largest - 1 are -largest .. -1, 1 .. largest; the last number has 2 largest added to it. The numbers
    before it differ, and it is minus the sum of two different numbers of the whole range for yes and no alike. (The
    published generator allows one number to be taken twice.)

    Fields:
        length: numbers before the last.
        largest: they are in -largest .. -1 and 1 .. largest, the last in -2 largest .. 2 largest.
    """

    length: int = 20
    largest: int = 500

    def __post_init__(self):
        need(
            self,
            (2 <= self.length <= 2 * self.largest, "length must be in 2 .. 2 * largest"),
            (
                self.length * (self.length - 1) <= 12 * self.largest,
                "length * (length - 1) must be at most 12 * largest, or nearly every sum can be met",
            ),
        )

    @property
    def seq_len(self) -> int:
        return self.length + 1

    @property
    def vocab_size(self) -> int:
        return 4 * self.largest + 3

    def sample(self, n: int, generator: Generator) -> Batch:
        yes = coins(n, generator)
        inputs = torch.zeros(n, self.seq_len, dtype=torch.long)
        missing = torch.ones(n, dtype=torch.bool)
        while missing.any():  # negatives by rejection, as published
            rows = int(missing.sum())
            ids = distinct(rows, 0, 2 * self.largest, self.length, generator)
            mine = ids.gather(1, distinct(rows, 0, self.length, 2, generator))
            others = distinct(rows, 0, 2 * self.largest, 2, generator)
            summed = _numbers_of(mine.where(yes[missing].unsqueeze(1), others), self.largest).sum(dim=1, keepdim=True)
            inputs[missing] = torch.cat((ids, 2 * self.largest - summed), dim=1)
            found = torch.zeros(n, dtype=torch.bool)
            found[missing] = self._matches(inputs[missing])
            missing &= found != yes
        return self.said(inputs, yes)

    def decide(self, row: list[int]) -> bool:
        numbers, last = _numbers_of(torch.tensor(row[:-1]), self.largest).tolist(), row[-1] - 2 * self.largest
        return any(a + b + last == 0 for a, b in combinations(numbers, 2))

    def _matches(self, inputs: Tensor) -> Tensor:
        """(n,) what `decide` says."""
        numbers, last = _numbers_of(inputs[:, :-1], self.largest), inputs[:, -1] - 2 * self.largest
        sums = numbers.unsqueeze(2) + numbers.unsqueeze(1)
        sums.diagonal(dim1=1, dim2=2).fill_(5 * self.largest)  # no number is taken twice
        return (sums == -last[:, None, None]).any(dim=(1, 2))


@dataclass(frozen=True, kw_only=True)
class Unique(Task):
    """Which number occurs only once?

    Unique(length=8)
    inputs    5  2  2  5  3  2  5  5
    targets   .  .  .  .  .  .  .  3

    A quarter of `length` numbers fill all but one place, each at least twice; they are below `length`.

    Fields:
        length: of the sequence.
    """

    length: int = 50

    def __post_init__(self):
        need(self, (self.length >= 5, "length must be at least 5"))

    @property
    def seq_len(self) -> int:
        return self.length

    @property
    def vocab_size(self) -> int:
        return self.length

    @property
    def chance(self) -> float:
        return 1 / (self.length // 4 + 1)

    def sample(self, n: int, generator: Generator) -> Batch:
        quarter = self.length // 4
        numbers = distinct(n, 0, self.length, quarter + 1, generator)
        only, often = numbers[:, :1], numbers[:, 1:]
        rest = torch.randint(quarter, (n, self.length - 2 * quarter - 1), generator=generator)
        inputs = shuffled(torch.cat((only, often, often, often.gather(1, rest)), dim=1), generator)
        targets = no_answers(inputs)
        targets[:, -1:] = only
        return Batch.of(inputs, targets)

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            (answer[-1],) = (number for number, count in Counter(row).items() if count == 1)
        return targets


@dataclass(frozen=True, kw_only=True)
class SetDifference(Task):
    """Which element of the first set is not in the second, if there is one?

    SetDifference(length=6, num_values=9)
    inputs    4  7  9  1  4  0  8      9 parts the sets
    targets   .  .  .  .  .  .  7

    The first set has a third of `length` elements, the second the rest. In half of the examples the second holds all of
    the first, and the answer is the last id.

    Fields:
        length: elements of both sets together. num_values: numbers that they may be.
    """

    length: int = 50
    num_values: int = 100

    def __post_init__(self):
        need(
            self,
            (self.length >= 3, "length must be at least 3"),
            (self.num_values > self.length, "num_values must be above length"),
        )

    @property
    def seq_len(self) -> int:
        return self.length + 1

    @property
    def vocab_size(self) -> int:
        return self.num_values + 2

    @property
    def chance(self) -> float:
        """Of the guess that nothing is missing."""
        return 0.5

    def sample(self, n: int, generator: Generator) -> Batch:
        first = self.length // 3
        numbers = distinct(n, 0, self.num_values, self.length + 1, generator)
        a, others = numbers[:, :first], numbers[:, first : self.length - first]
        extra, missing = numbers[:, -1:], coins(n, generator).unsqueeze(1)
        b = shuffled(torch.cat((a[:, 1:], others, extra.where(missing, a[:, :1])), dim=1), generator)
        inputs = torch.cat((shuffled(a, generator), torch.full((n, 1), self.num_values), b), dim=1)
        targets = no_answers(inputs)
        targets[:, -1:] = a[:, :1].where(missing, self.num_values + 1)
        return Batch.of(inputs, targets)

    def solve(self, inputs: Tensor) -> Tensor:
        targets, first = no_answers(inputs), self.length // 3
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            left = set(row[:first]) - set(row[first + 1 :])
            answer[-1] = left.pop() if left else self.num_values + 1
        return targets


@dataclass(frozen=True, kw_only=True)
class Reachability(YesOrNo):
    """Does a directed path lead from s to t?

    Reachability(num_paths=2, path_len=3)
    inputs    3  0  4  1  0  5  2  4  3  5      edges 3-0, 4-1, 0-5, 2-4; then s and t
    targets   .  .  .  .  .  .  .  .  .  7      yes

    The graph is disjoint paths, its edges and the numbers of its nodes are shuffled. s begins a path; t ends the same
    one, or another.

    Fields:
        num_paths: paths. path_len: nodes of each.
    """

    num_paths: int = 2
    path_len: int = 12

    def __post_init__(self):
        need(self, (min(self.num_paths, self.path_len) >= 2, "num_paths and path_len must be at least 2"))

    @property
    def seq_len(self) -> int:
        return 2 * self.num_paths * (self.path_len - 1) + 2

    @property
    def vocab_size(self) -> int:
        return self.num_paths * self.path_len + 2

    def sample(self, n: int, generator: Generator) -> Batch:
        nodes = distinct(n, 0, self.num_paths * self.path_len, self.num_paths * self.path_len, generator)
        paths = nodes.view(n, self.num_paths, self.path_len)
        edges = torch.stack((paths[:, :, :-1], paths[:, :, 1:]), dim=3).flatten(1, 2)  # (n, edges, 2)
        order = torch.rand(edges.shape[:2], generator=generator).argsort(dim=1)
        edges = edges.gather(1, order.unsqueeze(2).expand_as(edges)).flatten(1)
        yes = coins(n, generator)
        start, other = distinct(n, 0, self.num_paths, 2, generator).split(1, dim=1)
        end = start.where(yes.unsqueeze(1), other)
        asked = torch.cat((paths[:, :, 0].gather(1, start), paths[:, :, -1].gather(1, end)), dim=1)
        return self.said(torch.cat((edges, asked), dim=1), yes)

    def decide(self, row: list[int]) -> bool:
        *edges, at, end = row
        following = dict(zip(edges[0::2], edges[1::2], strict=True))
        while at in following:
            at = following[at]
        return at == end


def _numbers_of(ids: Tensor, largest: int) -> Tensor:
    """Ids 0 .. 2 largest - 1 as the numbers -largest .. -1, 1 .. largest."""
    return ids - largest + (ids >= largest).long()
