"""Induction: what followed the special token the first time."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._task import Batch, Task, need, no_answers


@dataclass(frozen=True, kw_only=True)
class Induction(Task):
    """Recall the token after a special one when that comes again (Dao et al. 2022, arXiv 2212.14052, sec. 3.1).

    Induction(seq_len=7, vocab_size=10)
    inputs    3  9  5  2  8  5  9      9 is special; 5 followed it
    targets   .  .  .  .  .  .  5

    Fields:
        seq_len: length. vocab_size: number of token ids; the last is special.
    """

    seq_len: int = 30
    vocab_size: int = 20

    def __post_init__(self):
        need(
            self,
            (self.seq_len >= 3, "seq_len must be at least 3"),
            (self.vocab_size >= 3, "vocab_size must be at least 3"),
        )

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1)

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs = torch.randint(self.vocab_size - 1, (n, self.seq_len), generator=generator)
        first = torch.randint(self.seq_len - 2, (n, 1), generator=generator)
        inputs.scatter_(1, first, self.vocab_size - 1)
        inputs[:, -1] = self.vocab_size - 1
        targets = no_answers(inputs)
        targets[:, -1:] = inputs.gather(1, first + 1)
        return Batch.of(inputs, targets)

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            answer[-1] = row[row.index(self.vocab_size - 1) + 1]
        return targets
