"""ForgettingMQAR: some keys are given a second value; the last one counts."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._draw import avoiding, distinct, power_law_slots, shuffled
from ._task import Batch, Task, need, no_answers


@dataclass(frozen=True, kw_only=True)
class ForgettingMQAR(Task):
    """MQAR whose memory must be overwritten (`forgetting_mqar` in Zoology's code).

    ForgettingMQAR(num_pairs=2, num_updates=1, seq_len=12, vocab_size=10)
    inputs    2  9  4  8  2  7  0  0  2  0  4  0      2 has the value 9, later 7
    targets   .  .  .  .  .  .  .  .  7  .  8  .

    The updates follow upon the pairs, in random order. Otherwise as MQAR.

    Fields:
        num_pairs: keys. num_updates: how many of them get another value.
        seq_len: length, even: two tokens for each pair, each update and each question at least.
        vocab_size, power_a, random_non_queries: as MQAR's.
    """

    num_pairs: int = 8
    num_updates: int = 4
    seq_len: int = 64
    vocab_size: int = 8192
    power_a: float = 0.01
    random_non_queries: bool = True

    def __post_init__(self):
        shortest = 2 * (2 * self.num_pairs + self.num_updates)
        need(
            self,
            (self.num_pairs >= 1, "num_pairs must be at least 1"),
            (0 <= self.num_updates <= self.num_pairs, "num_updates must be in 0 .. num_pairs"),
            (
                self.seq_len % 2 == 0 and self.seq_len >= shortest,
                f"seq_len must be even and at least 4 * num_pairs + 2 * num_updates = {shortest}",
            ),
            (
                self.vocab_size // 2 - 1 >= self.num_pairs + self.num_updates,
                "vocab_size must be at least 2 * (num_pairs + num_updates) + 2, so that keys and values differ",
            ),
            (self.power_a > 0, "power_a must be above 0"),
        )

    @property
    def chance(self) -> float:
        return 1 / self.num_pairs

    def sample(self, n: int, generator: Generator) -> Batch:
        context, first_value = 2 * (self.num_pairs + self.num_updates), self.vocab_size // 2
        keys = distinct(n, 1, first_value, self.num_pairs, generator)  # (n, pairs)
        written = distinct(n, first_value, self.vocab_size, self.num_pairs + self.num_updates, generator)
        # The order of keys is random, so the updated ones may as well be the first; only their order is drawn.
        which = shuffled(torch.arange(self.num_updates).expand(n, -1), generator)  # (n, updates)
        values = written[:, : self.num_pairs].scatter(1, which, written[:, self.num_pairs :])
        pairs = torch.stack((torch.cat((keys, keys.gather(1, which)), dim=1), written), dim=2)
        order = torch.rand(n, self.num_pairs, generator=generator).argsort(dim=1)
        order = torch.cat((order, torch.arange(self.num_pairs, context // 2).expand(n, -1)), dim=1)
        num_slots = (self.seq_len - context) // 2
        asked = context + 2 * power_law_slots(n, num_slots, self.num_pairs, self.power_a, generator)
        inputs = torch.zeros(n, self.seq_len, dtype=torch.long)
        inputs[:, :context] = pairs.gather(1, order.unsqueeze(2).expand(-1, -1, 2)).flatten(1)
        inputs.scatter_(1, asked, keys)
        if self.random_non_queries:
            inputs = torch.where(inputs == 0, avoiding(keys, self.vocab_size, self.seq_len, generator), inputs)
        return Batch.of(inputs, no_answers(inputs).scatter_(1, asked, values))

    def solve(self, inputs: Tensor) -> Tensor:
        targets, context = no_answers(inputs), 2 * (self.num_pairs + self.num_updates)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            memory = dict(zip(row[0:context:2], row[1:context:2], strict=True))  # a later value replaces an earlier
            for t in range(context, self.seq_len):
                answer[t] = memory.get(row[t], answer[t])
        return targets
