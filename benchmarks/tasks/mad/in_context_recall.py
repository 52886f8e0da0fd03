"""InContextRecall: a stream of key-value pairs in which keys come again; NoisyRecall: with noise among them."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from .._task import NO_ANSWER, Batch, Task, need, no_answers


@dataclass(frozen=True, kw_only=True)
class InContextRecall(Task):
    """The value of a key that was seen before (MAD, arXiv 2403.17844, and its official generator).

    InContextRecall(num_pairs=4, vocab_size=8)
    inputs    2  7  1  5  2  7  1      keys are 0 .. 3, values 4 .. 7
    targets   .  .  .  .  7  .  5

    Each key has one value within a sequence. The last key is drawn among those seen; its value is not read. Training is
    on every next token, as published.

    Fields:
        num_pairs: pairs in the stream. vocab_size: number of token ids, half of them keys.
    """

    num_pairs: int = 64
    vocab_size: int = 16

    noise_ids = 0
    noise_share = 0.0
    every_token: ClassVar[bool] = True

    def __post_init__(self):
        self._check()

    def _check(self) -> None:
        need(
            self,
            (self.num_pairs >= 2, "num_pairs must be at least 2"),
            (self.vocab_size - self.noise_ids >= 4, "vocab_size must leave at least 4 ids to keys and values"),
        )

    @property
    def seq_len(self) -> int:
        return 2 * self.num_pairs - 1

    @property
    def chance(self) -> float:
        """Of a value guessed blindly."""
        return 1 / (self._first_noise - self._first_noise // 2)

    @property
    def _first_noise(self) -> int:
        return self.vocab_size - self.noise_ids

    def sample(self, n: int, generator: Generator) -> Batch:
        num_keys, last = self._first_noise // 2, self.num_pairs - 1
        keys = torch.randint(num_keys, (n, self.num_pairs), generator=generator)
        noisy = torch.rand(n, self.num_pairs, generator=generator) < self.noise_share
        # One pair at least stands before the last key, which asks for one.
        noisy.scatter_(1, torch.randint(last, (n, 1), generator=generator), False)
        noisy[:, last] = False
        shown = torch.zeros(n, num_keys + 1).scatter_(1, keys[:, :last].where(~noisy[:, :last], num_keys), 1.0)
        keys[:, last] = torch.multinomial(shown[:, :num_keys], 1, generator=generator).squeeze(1)
        values = torch.randint(num_keys, self._first_noise, (n, num_keys), generator=generator).gather(1, keys)
        stream = torch.stack((keys, values), dim=2)
        noise = torch.randint(self._first_noise, self.vocab_size + 1, stream.shape, generator=generator)
        stream = stream.where(~noisy.unsqueeze(2), noise.clamp(max=self.vocab_size - 1))
        again = _seen_before(keys, noisy)
        targets = torch.stack((values.where(again, NO_ANSWER), torch.full_like(keys, NO_ANSWER)), dim=2)
        return Batch.of(stream.flatten(1)[:, :-1], targets.flatten(1)[:, :-1])

    def solve(self, inputs: Tensor) -> Tensor:
        targets, num_keys = no_answers(inputs), self._first_noise // 2
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            memory: dict[int, int] = {}
            for t in range(0, self.seq_len, 2):
                if row[t] < num_keys:
                    answer[t] = memory.get(row[t], NO_ANSWER)
                    memory[row[t]] = row[t + 1] if t + 1 < self.seq_len else NO_ANSWER
        return targets


@dataclass(frozen=True, kw_only=True)
class NoisyRecall(InContextRecall):
    """InContextRecall with noise between the pairs (MAD).

    NoisyRecall(num_pairs=4, vocab_size=10, noise_ids=2)
    inputs    2  7  9  8  1  5  2      8 and 9 are noise
    targets   .  .  .  .  .  .  7

    Fields:
        vocab_size: number of token ids, the noise's among them.
        noise_ids: how many of them, the last, are noise.
        noise_share: of the pairs, each replaced by two such tokens.
    """

    vocab_size: int = 32
    noise_ids: int = 16
    noise_share: float = 0.2

    def __post_init__(self):
        self._check()
        need(
            self,
            (self.noise_ids >= 1, "noise_ids must be at least 1"),
            (0 <= self.noise_share < 1, "noise_share must be in [0, 1)"),
        )


def _seen_before(keys: Tensor, noisy: Tensor) -> Tensor:
    """(n, pairs): whether the key stands further left as well, where nothing is noise."""
    same = keys.unsqueeze(2) == keys.unsqueeze(1)  # (n, later, earlier)
    same &= ~noisy.unsqueeze(1) & ~noisy.unsqueeze(2)
    return same.tril(-1).any(dim=2)
