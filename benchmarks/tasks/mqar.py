"""MQAR: after a list of key-value pairs, recall the value of each key asked."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._task import NO_ANSWER, Batch, Task


@dataclass(frozen=True, kw_only=True)
class MQAR(Task):
    """Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927, sec. 3 and its official generator).

    inputs    2  9  4  8  0  0  4  0  2  0      keys 2, 4 with values 9, 8; then the queries 4 and 2
    targets   .  .  .  .  .  .  8  .  9  .      "." is NO_ANSWER

    Keys are distinct in 1 .. vocab_size/2 - 1, values distinct in vocab_size/2 .. vocab_size - 1. After the pairs
    every second position is a slot; each key is asked once, in slot g with probability ~ (g + 1)^(power_a - 1),
    drawn without replacement.

    Fields:
        num_pairs: keys to remember; four tokens of the sequence for each at least.
        seq_len: length, even.
        vocab_size: number of token ids.
        power_a: 1 spreads the questions evenly, near 0 most follow closely upon the pairs.
        random_non_queries: the rest is random tokens instead of 0. They are uniform over all ids that are not keys
            of their own row. (The published generator takes any id, so that by accident a key meets a second value
            before it is asked, or stands there as a question without a target.)
    """

    num_pairs: int = 8
    seq_len: int = 64
    vocab_size: int = 8192
    power_a: float = 0.01
    random_non_queries: bool = True

    def __post_init__(self):
        if self.num_pairs < 1:
            raise ValueError(f"MQAR: num_pairs must be at least 1, got {self.num_pairs}")
        if self.seq_len % 2 or self.seq_len < 4 * self.num_pairs:
            raise ValueError(
                f"MQAR: seq_len must be even and at least 4 * num_pairs = {4 * self.num_pairs}, got {self.seq_len}"
            )
        if self.vocab_size // 2 - 1 < self.num_pairs:
            raise ValueError(
                f"MQAR: vocab_size must be at least 2 * num_pairs + 2 = {2 * self.num_pairs + 2}, so that the keys "
                f"differ, got {self.vocab_size}"
            )
        if not self.power_a > 0:
            raise ValueError(f"MQAR: power_a must be above 0, got {self.power_a}")

    @property
    def chance(self) -> float:
        return 1 / self.num_pairs

    def sample(self, n: int, generator: Generator) -> Batch:
        context, first_value = 2 * self.num_pairs, self.vocab_size // 2
        keys = _distinct(n, 1, first_value, self.num_pairs, generator)  # (n, pairs)
        values = _distinct(n, first_value, self.vocab_size, self.num_pairs, generator)
        asked = context + 2 * self._gaps(n, generator)  # (n, pairs): where key i is asked
        inputs = torch.zeros(n, self.seq_len, dtype=torch.long)
        inputs[:, 0:context:2], inputs[:, 1:context:2] = keys, values
        inputs.scatter_(1, asked, keys)
        if self.random_non_queries:
            filler = _avoiding(keys, self.vocab_size, self.seq_len, generator)
            inputs = torch.where(inputs == 0, filler, inputs)
        targets = torch.full_like(inputs, NO_ANSWER).scatter_(1, asked, values)
        rows = torch.arange(n).unsqueeze(1) * self.seq_len
        return Batch(inputs, targets, (rows + asked).flatten())

    def solve(self, inputs: Tensor) -> Tensor:
        targets, context = torch.full_like(inputs, NO_ANSWER), 2 * self.num_pairs
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            memory = dict(zip(row[0:context:2], row[1:context:2], strict=True))
            for t in range(context, self.seq_len):
                answer[t] = memory.get(row[t], NO_ANSWER)
        return targets

    def _gaps(self, n: int, generator: Generator) -> Tensor:
        """(n, pairs) slots drawn one after the other without replacement, p(g) ~ (g + 1)^(power_a - 1)."""
        num_slots = (self.seq_len - 2 * self.num_pairs) // 2
        weight = torch.arange(1, num_slots + 1, dtype=torch.float64).pow(self.power_a - 1).float()
        # A race of exponential clocks: the order in which they ring is the order of such draws.
        rings = torch.empty(n, num_slots).exponential_(generator=generator) / weight
        return rings.topk(self.num_pairs, largest=False, sorted=True).indices


def _distinct(n: int, low: int, high: int, count: int, generator: Generator) -> Tensor:
    """(n, count) integers in low .. high - 1, none twice in a row; every such row is equally likely."""
    if 4 * count > high - low:
        return low + torch.rand(n, high - low, generator=generator).topk(count).indices
    # Drawing repeated ones anew favours no id over another, so the rows stay uniform.
    drawn = torch.randint(low, high, (n, count), generator=generator)
    while (again := _repeats(drawn)).any():
        drawn[again] = torch.randint(low, high, (int(again.sum()),), generator=generator)
    return drawn


def _repeats(x: Tensor) -> Tensor:
    """True where a row already had that integer further left."""
    ordered, order = x.sort(dim=1, stable=True)
    repeated = torch.zeros_like(x, dtype=torch.bool)
    return repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])


def _avoiding(keys: Tensor, vocab_size: int, seq_len: int, generator: Generator) -> Tensor:
    """(n, seq_len) ids, uniform over 0 .. vocab_size - 1 without the keys of the row."""
    n, count = keys.shape
    rank = torch.randint(vocab_size - count, (n, seq_len), generator=generator)  # among the ids left
    # The i-th smallest key has keys_i - i ids left below it; each key that lies at or below shifts the rank by one.
    left_below = keys.sort(dim=1).values - torch.arange(count)
    return rank + torch.searchsorted(left_below, rank, right=True)
