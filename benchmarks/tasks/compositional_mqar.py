"""CompositionalMQAR: a key is a pair of tokens, of which neither alone tells the value."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._draw import avoiding, distinct, power_law_slots, shuffled
from ._task import Batch, Task, need, no_answers


@dataclass(frozen=True, kw_only=True)
class CompositionalMQAR(Task):
    """MQAR with keys of two tokens (`compositional_mqar` in Zoology's code).

    CompositionalMQAR(num_pairs=4, seq_len=24, vocab_size=24)
    inputs    1 9 20 2 9 21 1 8 22 2 8 23 2 9 0 1 8 0 1 9 0 2 8 0      (1, 9) has the value 20, (2, 9) 21, ...
    targets   . .  . . .  . . .  . . .  . . 21 . . 22 . . 20 . . 23 .

    First tokens of keys are in 1 .. v/3 - 1, second ones in v/3 .. 2v/3 - 1, values in 2v/3 .. v - 1. A grid of
    sqrt(num_pairs) first and as many second tokens makes the keys, listed in random order. After them every third
    position is a slot for a question, drawn as MQAR's. Random filler names no first token of its row. (The published
    generator takes any id.)

    Fields:
        num_pairs: keys, a square.
        seq_len: three tokens for each pair, and three for each question at least.
        vocab_size, power_a, random_non_queries: as MQAR's.
    """

    num_pairs: int = 4
    seq_len: int = 64
    vocab_size: int = 8192
    power_a: float = 0.01
    random_non_queries: bool = True

    def __post_init__(self):
        need(
            self,
            (
                self.num_pairs >= 1 and math.isqrt(self.num_pairs) ** 2 == self.num_pairs,
                "num_pairs must be a square such as 4, 9 or 16",
            ),
            (self.seq_len >= 6 * self.num_pairs, f"seq_len must be at least 6 * num_pairs = {6 * self.num_pairs}"),
            (
                self.vocab_size // 3 > max(self.num_pairs, math.isqrt(self.num_pairs) + 1),
                "vocab_size must be above 3 * (num_pairs + 1), so that keys and values differ",
            ),
            (self.power_a > 0, "power_a must be above 0"),
        )

    @property
    def chance(self) -> float:
        return 1 / self.num_pairs

    def sample(self, n: int, generator: Generator) -> Batch:
        side, third, context = math.isqrt(self.num_pairs), self.vocab_size // 3, 3 * self.num_pairs
        firsts = distinct(n, 1, third, side, generator)
        seconds = distinct(n, third, 2 * third, side, generator)
        cell = shuffled(torch.arange(self.num_pairs).expand(n, -1), generator)  # of the grid
        first, second = firsts.gather(1, cell // side), seconds.gather(1, cell % side)  # (n, pairs)
        values = distinct(n, 2 * third, self.vocab_size, self.num_pairs, generator)
        num_slots = (self.seq_len - context) // 3
        asked = context + 3 * power_law_slots(n, num_slots, self.num_pairs, self.power_a, generator)
        inputs = torch.zeros(n, self.seq_len, dtype=torch.long)
        inputs[:, :context] = torch.stack((first, second, values), dim=2).flatten(1)
        inputs.scatter_(1, asked, first).scatter_(1, asked + 1, second)
        if self.random_non_queries:
            inputs = torch.where(inputs == 0, avoiding(firsts, self.vocab_size, self.seq_len, generator), inputs)
        return Batch.of(inputs, no_answers(inputs).scatter_(1, asked + 1, values))

    def solve(self, inputs: Tensor) -> Tensor:
        targets, context = no_answers(inputs), 3 * self.num_pairs
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            memory = {(row[i], row[i + 1]): row[i + 2] for i in range(0, context, 3)}
            for t in range(context + 1, self.seq_len):
                answer[t] = memory.get((row[t - 1], row[t]), answer[t])
        return targets
