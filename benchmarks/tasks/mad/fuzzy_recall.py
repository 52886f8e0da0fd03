"""FuzzyRecall: recall where keys and values are motifs of several tokens."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Generator, Tensor

from .._task import NO_ANSWER, Batch, Task, need, no_answers


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(Task):
    """The value of a key that was seen before, both of up to three tokens (MAD, arXiv 2403.17844, and its generator).

    FuzzyRecall(seq_len=15, vocab_size=13, key_motif=2, value_motif=2, full_keys=True)
    inputs   12 12  1  4  8  0  3  9  6  1  4  8  0  3  9      12 is padding; 1 4 has the value 8, and 0 3 has 9 6
    targets   .  .  .  .  .  .  .  .  .  .  8  .  .  9  6

    A motif is an ordered choice of distinct tokens. Pairs follow one another; a probe among them stands again at the
    end, its key whole and its value but for the last token. An answer is due wherever a token of the value of a key
    seen before comes next. The sequence is padded at the left. As published, training is with keys of any length and on
    every next token, testing with keys of full length.

    Fields:
        seq_len: length.
        vocab_size: number of token ids: half of all but the last are keys, half values, and the last is padding.
        key_motif, value_motif: most tokens of a key, and of a value.
        full_keys: every key has key_motif tokens; else each length is equally likely.
    """

    seq_len: int = 128
    vocab_size: int = 16
    key_motif: int = 3
    value_motif: int = 3
    full_keys: bool = False

    every_token: ClassVar[bool] = True

    def __post_init__(self):
        need(
            self,
            (min(self.key_motif, self.value_motif) >= 1, "key_motif and value_motif must be at least 1"),
            (
                (self.vocab_size - 1) // 2 >= max(self.key_motif, self.value_motif),
                "vocab_size must be at least 2 * max(key_motif, value_motif) + 1, so that the tokens of a motif differ",
            ),
            (
                self.seq_len >= 2 * (self.key_motif + self.value_motif),
                "seq_len must be at least 2 * (key_motif + value_motif), for the probe",
            ),
        )

    @property
    def tests(self) -> tuple[Task, ...]:
        return (replace(self, full_keys=True),)

    @property
    def chance(self) -> float:
        """Of a token of a value guessed blindly."""
        return 1 / (self.vocab_size - 1 - self._first_value)

    @property
    def _first_value(self) -> int:
        return (self.vocab_size - 1) // 2

    def sample(self, n: int, generator: Generator) -> Batch:
        most = self.seq_len // (2 if not self.full_keys else self.key_motif + 1)  # pairs, if all were short
        key_length = self._lengths(n, most, self.key_motif, self.full_keys, generator)
        value_length = self._lengths(n, most, self.value_motif, False, generator)
        keys = _motifs(n, most, 0, self._first_value, key_length, self.key_motif, generator)
        values = _motifs(n, most, self._first_value, self.vocab_size - 1, value_length, self.value_motif, generator)
        first = _first_alike(keys)  # (n, most): where the key stood first; its value there counts
        values = values.gather(1, first.unsqueeze(2).expand_as(values))
        pairs = torch.cat((keys, values), dim=2)  # (n, most, key_motif + value_motif), -1 where a motif is short
        length = (pairs >= 0).sum(dim=2)
        longest = self.key_motif + self.value_motif
        fits = length.cumsum(dim=1) <= self.seq_len + 1 - longest  # so the probe fits behind them
        num_pairs = fits.sum(dim=1, keepdim=True)
        probe = (torch.rand(n, 1, generator=generator) * num_pairs).long()  # (n, 1)
        again = (first < torch.arange(most)) & fits
        due = again.unsqueeze(2) & (torch.arange(longest) >= self.key_motif)
        pairs = pairs.where(fits.unsqueeze(2), -1)
        last = pairs.gather(1, probe.unsqueeze(2).expand(-1, 1, longest))
        tokens = torch.cat((pairs, last), dim=1).flatten(1)
        due = torch.cat((due.flatten(1), (torch.arange(longest) >= self.key_motif).expand(n, -1)), dim=1)
        order = (tokens >= 0).to(torch.int8).argsort(dim=1, stable=True)[:, -(self.seq_len + 1) :]  # pads to the left
        tokens, due = tokens.gather(1, order), due.gather(1, order)
        targets = tokens.where(due & (tokens >= 0), NO_ANSWER)[:, 1:]
        return Batch.of(tokens.where(tokens >= 0, self.vocab_size - 1)[:, :-1], targets)

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            t, memory = 0, {}
            while t < self.seq_len and row[t] == self.vocab_size - 1:
                t += 1
            while t < self.seq_len:
                start = t
                while t < self.seq_len and row[t] < self._first_value:
                    t += 1
                key, middle = tuple(row[start:t]), t
                while t < self.seq_len and row[t] >= self._first_value:
                    t += 1
                if key in memory:
                    value = memory[key]
                    answer[middle - 1 : middle - 1 + len(value)] = torch.tensor(value)
                memory.setdefault(key, row[middle:t])
        return targets

    @staticmethod
    def _lengths(n: int, count: int, longest: int, full: bool, generator: Generator) -> Tensor:
        if full:
            return torch.full((n, count), longest)
        return torch.randint(1, longest + 1, (n, count), generator=generator)


def _motifs(
    n: int, count: int, low: int, high: int, length: Tensor, longest: int, generator: Generator
) -> Tensor:  # fmt: skip
    """(n, count, longest) distinct tokens in low .. high - 1, and -1 beyond the length (n, count) of each."""
    tokens = torch.randint(high - low, (n, count, longest), generator=generator)
    for i in range(1, longest):  # the rank among ids that stand not further left becomes an id
        rank = torch.randint(high - low - i, (n, count), generator=generator)
        for smaller in tokens[:, :, :i].sort(dim=2).values.unbind(dim=2):
            rank += rank >= smaller
        tokens[:, :, i] = rank
    return (low + tokens).where(torch.arange(longest) < length.unsqueeze(2), -1)


def _first_alike(keys: Tensor) -> Tensor:
    """(n, count, longest) -> (n, count): the first position that holds the same key."""
    same = (keys.unsqueeze(2) == keys.unsqueeze(1)).all(dim=3)
    return same.to(torch.int8).argmax(dim=2)
