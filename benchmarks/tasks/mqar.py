"""MQAR: after a list of key-value pairs, recall the value of each key asked."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._draw import avoiding, distinct, power_law_slots
from ._task import Batch, Task, need, no_answers


@dataclass(frozen=True, kw_only=True)
class MQAR(Task):
    """Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927, sec. 3 and its official generator).

    MQAR(num_pairs=2, seq_len=10, vocab_size=10)
    inputs    2  9  4  8  0  0  4  0  2  0      keys 2, 4 with values 9, 8; then the queries 4 and 2
    targets   .  .  .  .  .  .  8  .  9  .      "." is NO_ANSWER

    Keys are distinct in 1 .. vocab_size/2 - 1, values distinct in vocab_size/2 .. vocab_size - 1. After the pairs
    every second position is a slot; each key is asked once, in slot g with probability ~ (g + 1)^(power_a - 1),
    drawn without replacement.

    Fields:
        num_pairs: keys to remember.
        num_passes: how often the list of pairs is read before the first question (JRT-Prompt, arXiv 2407.05483, reads
            it twice). (The published generator fails for more than one pass.)
        seq_len: length, even: two tokens for each pair in each pass, and two for each question at least.
        vocab_size: number of token ids.
        power_a: 1 spreads the questions evenly, near 0 most follow closely upon the pairs.
        random_non_queries: the rest is random tokens instead of 0. They are uniform over all ids that are not keys
            of their own row. (The published generator takes any id, so that by accident a key meets a second value
            before it is asked, or stands there as a question without a target.)
    """

    num_pairs: int = 8
    num_passes: int = 1
    seq_len: int = 64
    vocab_size: int = 8192
    power_a: float = 0.01
    random_non_queries: bool = True

    def __post_init__(self):
        shortest = 2 * self.num_pairs * (self.num_passes + 1)
        need(
            self,
            (self.num_pairs >= 1, "num_pairs must be at least 1"),
            (self.num_passes >= 1, "num_passes must be at least 1"),
            (
                self.seq_len % 2 == 0 and self.seq_len >= shortest,
                f"seq_len must be even and at least 2 * num_pairs * (num_passes + 1) = {shortest}",
            ),
            (
                self.vocab_size // 2 - 1 >= self.num_pairs,
                f"vocab_size must be at least 2 * num_pairs + 2 = {2 * self.num_pairs + 2}, so that the keys differ",
            ),
            (self.power_a > 0, "power_a must be above 0"),
        )

    @property
    def label(self) -> str:
        passes = f", {self.num_passes} passes" if self.num_passes > 1 else ""
        return f"{self.num_pairs} in {self.seq_len}{passes}"

    @property
    def chance(self) -> float:
        return 1 / self.num_pairs

    def sample(self, n: int, generator: Generator) -> Batch:
        context, first_value = 2 * self.num_pairs * self.num_passes, self.vocab_size // 2
        keys = distinct(n, 1, first_value, self.num_pairs, generator)  # (n, pairs)
        values = distinct(n, first_value, self.vocab_size, self.num_pairs, generator)
        num_slots = (self.seq_len - context) // 2
        # (n, pairs): where key i is asked
        asked = context + 2 * power_law_slots(n, num_slots, self.num_pairs, self.power_a, generator)
        inputs = torch.zeros(n, self.seq_len, dtype=torch.long)
        inputs[:, :context] = torch.stack((keys, values), dim=2).flatten(1).repeat(1, self.num_passes)
        inputs.scatter_(1, asked, keys)
        if self.random_non_queries:
            filler = avoiding(keys, self.vocab_size, self.seq_len, generator)
            inputs = torch.where(inputs == 0, filler, inputs)
        targets = no_answers(inputs).scatter_(1, asked, values)
        rows = torch.arange(n).unsqueeze(1) * self.seq_len
        return Batch(inputs, targets, (rows + asked).flatten())

    def solve(self, inputs: Tensor) -> Tensor:
        targets, context = no_answers(inputs), 2 * self.num_pairs
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            memory = dict(zip(row[0:context:2], row[1:context:2], strict=True))
            for t in range(context * self.num_passes, self.seq_len):
                answer[t] = memory.get(row[t], answer[t])
        return targets
