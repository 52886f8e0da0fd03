"""Copying: say a string again; SelectiveCopying: say again what stood between blanks."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._draw import subset
from ._task import Batch, Task, need, no_answers


@dataclass(frozen=True, kw_only=True)
class StringTask(Task):
    """A random string of all ids but the last, and as long an answer.

    Fields:
        num_tokens: length of the string. vocab_size: number of token ids; the last asks.
    """

    num_tokens: int = 32
    vocab_size: int = 32

    def __post_init__(self):
        need(
            self,
            (self.num_tokens >= 1, "num_tokens must be at least 1"),
            (self.vocab_size >= 3, "vocab_size must be at least 3"),
        )

    @property
    def seq_len(self) -> int:
        return 2 * self.num_tokens

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 1)


@dataclass(frozen=True, kw_only=True)
class Copying(StringTask):
    """A random string, a separator, and the string again (Jelassi et al. 2024, arXiv 2402.01032, sec. 4).

    Copying(num_tokens=3, vocab_size=8)
    inputs    4  0  5  7  4  0      7 asks for the copy; what was said of it is read back
    targets   .  .  .  4  0  5
    """

    def sample(self, n: int, generator: Generator) -> Batch:
        string = torch.randint(self.vocab_size - 1, (n, self.num_tokens), generator=generator)
        separator = torch.full((n, 1), self.vocab_size - 1)
        inputs = torch.cat((string, separator, string[:, :-1]), dim=1)
        return Batch.of(inputs, torch.cat((no_answers(string), string), dim=1))

    def solve(self, inputs: Tensor) -> Tensor:
        string = inputs[:, : self.num_tokens]
        return torch.cat((no_answers(string), string), dim=1)


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Task):
    """Tokens scattered among blanks, to be said again in order (MAD, arXiv 2403.17844, and its official generator).

    SelectiveCopying(num_tokens=2, seq_len=8, vocab_size=8)
    inputs    6  3  6  6  1  7  6  6      6 is blank, 7 asks for the copy
    targets   .  .  .  .  .  .  3  1

    Every arrangement of the tokens among the blanks is equally likely. (The published generator draws each blank's
    place from NumPy's global stream, always before some token.)

    Fields:
        num_tokens: tokens to copy; twice as many positions and one are needed at least.
        seq_len: length. vocab_size: number of token ids; the last two are the blank and the question.
    """

    num_tokens: int = 16
    seq_len: int = 256
    vocab_size: int = 16

    def __post_init__(self):
        need(
            self,
            (self.num_tokens >= 1, "num_tokens must be at least 1"),
            (
                self.seq_len > 2 * self.num_tokens,
                f"seq_len must be at least 2 * num_tokens + 1 = {2 * self.num_tokens + 1}",
            ),
            (self.vocab_size >= 4, "vocab_size must be at least 4"),
        )

    @property
    def chance(self) -> float:
        return 1 / (self.vocab_size - 2)

    def sample(self, n: int, generator: Generator) -> Batch:
        context = self.seq_len - self.num_tokens - 1
        tokens = torch.randint(self.vocab_size - 2, (n, self.num_tokens), generator=generator)
        inputs = torch.full((n, self.seq_len), self.vocab_size - 2)
        inputs.scatter_(1, subset(n, context, self.num_tokens, generator), tokens)
        inputs[:, context] = self.vocab_size - 1
        targets = no_answers(inputs)
        targets[:, context + 1 :] = tokens
        return Batch.of(inputs, targets)

    def solve(self, inputs: Tensor) -> Tensor:
        targets, context = no_answers(inputs), self.seq_len - self.num_tokens - 1
        for row, answer in zip(inputs[:, :context], targets, strict=True):
            answer[context + 1 :] = row[row != self.vocab_size - 2]
        return targets
