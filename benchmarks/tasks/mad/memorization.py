"""Memorization: values that no sequence tells; they must be learned."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from .._task import NO_ANSWER, Batch, Task, need


@dataclass(frozen=True, kw_only=True)
class Memorization(Task):
    """The value of a key by a map that is the same for all examples (MAD, arXiv 2403.17844, and its generator).

    Memorization(num_pairs=2, vocab_size=7, map_seed=0)
    inputs    1  6  2  6      6 asks for the value of the key before it
    targets   .  3  .  4

    Keys are 0 .. v/2 - 1, drawn anew for each place; values are as many of the others, in an order that map_seed
    decides.

    Fields:
        num_pairs: keys of a sequence. vocab_size: number of token ids, odd ones leave a value unused; the last asks.
        map_seed: decides the map.
    """

    num_pairs: int = 16
    vocab_size: int = 256
    map_seed: int = 12345

    def __post_init__(self):
        need(
            self,
            (self.num_pairs >= 1, "num_pairs must be at least 1"),
            (self.vocab_size >= 3, "vocab_size must be at least 3"),
        )

    @property
    def seq_len(self) -> int:
        return 2 * self.num_pairs

    @property
    def chance(self) -> float:
        return 1 / self._num_keys

    @property
    def _num_keys(self) -> int:
        return (self.vocab_size - 1) // 2

    @cached_property
    def _map(self) -> Tensor:
        """(keys,) the value of each key."""
        order = torch.randperm(self._num_keys, generator=torch.Generator().manual_seed(self.map_seed))
        return self._num_keys + order

    def sample(self, n: int, generator: Generator) -> Batch:
        keys = torch.randint(self._num_keys, (n, self.num_pairs), generator=generator)
        inputs = torch.stack((keys, torch.full_like(keys, self.vocab_size - 1)), dim=2).flatten(1)
        return Batch.of(inputs, self.solve(inputs))

    def solve(self, inputs: Tensor) -> Tensor:
        values = self._map[inputs[:, 0::2]]
        return torch.stack((torch.full_like(values, NO_ANSWER), values), dim=2).flatten(1)
