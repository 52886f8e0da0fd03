"""SetDisjointness: which token stands in both of two lists."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._draw import distinct, picked
from ._task import Batch, Task, need, no_answers

FIRST, SECOND, ASK = 0, 1, 2  # tokens that open the lists, and the question


@dataclass(frozen=True, kw_only=True)
class SetDisjointness(Task):
    """The token that two lists share (Arora et al. 2024, arXiv 2407.05483, sec. 3).

    SetDisjointness(first_len=2, second_len=3, vocab_size=20)
    inputs    0  5  3  1 12  5 17  2      the lists 5 3 and 12 5 17
    targets   .  .  .  .  .  .  .  5

    The first list is of the lower half of the ids, the second of the upper; then one token of the longer list is
    replaced by one of the shorter. A model with a fixed state must hold the first list whole, so that it matters
    whether the short list comes first.

    Fields:
        first_len, second_len: lengths of the lists. vocab_size: number of token ids.
    """

    first_len: int = 4
    second_len: int = 16
    vocab_size: int = 2048

    def __post_init__(self):
        need(
            self,
            (min(self.first_len, self.second_len) >= 1, "first_len and second_len must be at least 1"),
            (
                self.vocab_size // 2 - 3 >= max(self.first_len, self.second_len),
                "vocab_size must be at least 2 * max(first_len, second_len) + 6, so that the tokens differ",
            ),
        )

    @property
    def seq_len(self) -> int:
        return self.first_len + self.second_len + 3

    @property
    def chance(self) -> float:
        return 1 / min(self.first_len, self.second_len)

    def sample(self, n: int, generator: Generator) -> Batch:
        half = self.vocab_size // 2
        first = distinct(n, 3, half, self.first_len, generator)
        second = distinct(n, half, self.vocab_size, self.second_len, generator)
        shorter, longer = (first, second) if self.first_len <= self.second_len else (second, first)
        shared = picked(shorter, generator)
        where = torch.randint(longer.shape[1], (n, 1), generator=generator)
        longer.scatter_(1, where, shared.unsqueeze(1))
        marks = [torch.full((n, 1), mark) for mark in (FIRST, SECOND, ASK)]
        inputs = torch.cat((marks[0], first, marks[1], second, marks[2]), dim=1)
        targets = no_answers(inputs)
        targets[:, -1] = shared
        return Batch.of(inputs, targets)

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            first, second = row[1 : 1 + self.first_len], row[2 + self.first_len : -1]
            (answer[-1],) = set(first) & set(second)
        return targets
