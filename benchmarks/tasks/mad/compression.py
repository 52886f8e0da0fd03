"""Compression: say a whole sequence from the last token's hidden state."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from .._task import Batch, Task, need, no_answers


@dataclass(frozen=True, kw_only=True)
class Compression(Task):
    """Random tokens to be restored from one vector (MAD, arXiv 2403.17844, and its official generator).

    Compression(seq_len=4, vocab_size=6)
    inputs    3  0  3  5      5 is where all must have been gathered
    targets   3  0  3  .

    Answers are read from the hidden state after the last token alone, by a decoder that knows the position:
    `bottleneck`. (The published generator asks for the last token too, which is always the same.)

    Fields:
        seq_len: length, with the last token. vocab_size: number of token ids; the last id ends the sequence.
    """

    seq_len: int = 32
    vocab_size: int = 16

    bottleneck: ClassVar[bool] = True

    def __post_init__(self):
        need(
            self,
            (self.seq_len >= 2, "seq_len must be at least 2"),
            (self.vocab_size >= 3, "vocab_size must be at least 3"),
        )

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1)

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs = torch.randint(self.vocab_size - 1, (n, self.seq_len), generator=generator)
        inputs[:, -1] = self.vocab_size - 1
        return Batch.of(inputs, self.solve(inputs))

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        targets[:, :-1] = inputs[:, :-1]
        return targets
