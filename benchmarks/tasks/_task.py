"""The one interface every task keeps."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Generator, Tensor

NO_ANSWER = -100  # torch.nn.functional.cross_entropy ignores this target


class Batch(NamedTuple):
    inputs: Tensor  # (b, t) token ids
    targets: Tensor  # (b, t) the token asked for, or NO_ANSWER
    positions: Tensor  # (a,) where in the flattened (b t) an answer is due

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor) -> "Batch":
        """Answers in the order of the sequence."""
        return cls(inputs, targets, (targets != NO_ANSWER).flatten().nonzero().squeeze(1))

    @property
    def answers(self) -> Tensor:
        """(a,) the tokens asked for, in the order of `positions`."""
        return self.targets.flatten()[self.positions]


class Task(ABC):
    """A family of sequences with questions. Subclasses are frozen dataclasses: their fields are the difficulty.

    bottleneck: every answer must be read from the last token's hidden state alone.
    """

    seq_len: int
    vocab_size: int
    bottleneck: ClassVar[bool] = False

    @abstractmethod
    def sample(self, n: int, generator: Generator) -> Batch:
        """`n` examples; all randomness comes from `generator`."""

    @abstractmethod
    def solve(self, inputs: Tensor) -> Tensor:
        """The targets, found from the inputs alone: proof that the task can be done."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of the best guess that ignores which question is asked."""

    @property
    def ceiling(self) -> float:
        """Accuracy of `solve`: below 1 only where answers are drawn at random."""
        return 1.0


def need(task: Task, *conditions: tuple[bool, str]) -> None:
    """Refuse fields that cannot be: the first condition that is false is named."""
    for holds, expected in conditions:
        if not holds:
            raise ValueError(f"{type(task).__name__}: {expected}; got {task}")


def no_answers(inputs: Tensor) -> Tensor:
    """Targets of these inputs in which nothing is asked yet."""
    return inputs.new_full(inputs.shape, NO_ANSWER)
