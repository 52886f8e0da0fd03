"""The one interface every task keeps."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Generator, Tensor

NO_ANSWER = -100  # torch.nn.functional.cross_entropy ignores this target


class Batch(NamedTuple):
    inputs: Tensor  # (b, t) token ids
    targets: Tensor  # (b, t) the token asked for, or NO_ANSWER
    positions: Tensor  # (a,) where in the flattened (b t) an answer is due

    @property
    def answers(self) -> Tensor:
        """(a,) the tokens asked for, in the order of `positions`."""
        return self.targets.flatten()[self.positions]


class Task(ABC):
    """A family of sequences with questions. Subclasses are frozen dataclasses: their fields are the difficulty."""

    seq_len: int
    vocab_size: int

    @abstractmethod
    def sample(self, n: int, generator: Generator) -> Batch:
        """`n` examples; all randomness comes from `generator`."""

    @abstractmethod
    def solve(self, inputs: Tensor) -> Tensor:
        """The targets, found from the inputs alone: proof that the task can be done."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of the best guess that ignores which key was asked."""
