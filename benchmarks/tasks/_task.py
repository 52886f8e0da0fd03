"""The one interface every task keeps."""

from abc import ABC, abstractmethod
from dataclasses import fields
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

    def with_next_tokens(self) -> "Batch":
        """The same, with the next token due wherever no answer is; only the last position may stay without."""
        following = self.inputs.roll(-1, dims=1)
        following[:, -1] = NO_ANSWER
        return Batch.of(self.inputs, self.targets.where(self.targets != NO_ANSWER, following))


class Source(ABC):
    """What examples come from.

    every_token: training is on every next token beside the answers, as published; testing is on the answers.
    bottleneck: every answer must be read from the last token's hidden state alone.
    """

    seq_len: int
    vocab_size: int
    every_token: ClassVar[bool] = False
    bottleneck: ClassVar[bool] = False

    @property
    @abstractmethod
    def label(self) -> str:
        """What a table calls it."""

    @abstractmethod
    def sample(self, n: int, generator: Generator) -> Batch:
        """`n` examples; all randomness comes from `generator`."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of the best guess that ignores which question is asked."""


class Task(Source):
    """A family of sequences with questions. Subclasses are frozen dataclasses: their fields are the difficulty."""

    @property
    def label(self) -> str:
        """The name, and the fields that are not at their defaults."""
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(changed)})" if changed else type(self).__name__

    @property
    def tests(self) -> tuple["Task", ...]:
        """On what a model is tested that was trained on this."""
        return (self,)

    @abstractmethod
    def solve(self, inputs: Tensor) -> Tensor:
        """The targets, found from the inputs alone: proof that the task can be done."""

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
