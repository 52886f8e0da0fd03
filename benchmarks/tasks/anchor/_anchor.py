"""What all anchor functions share: the sequence, where anchors stand, and which keys are held out."""

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from .._task import Batch, Task, need, no_answers

FIRST_KEY, END_OF_KEYS = 20, 100
SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class AnchorTask(Task):
    """Sequences of random tokens in 20 .. 100 in which anchors, below 20, stand beside keys in 20 .. 99.

    One answer is due, at the last position. A key x at position i is held out for testing if x and i leave the same
    residue modulo seq_len - 1: every key is seen in training, and every position, but not both together.

    Fields:
        split: "train", or "test" for held-out keys. seq_len: length.
    """

    split: str = "train"
    seq_len: int = 9

    vocab_size = 201  # as published: answers may leave the keys' range

    def __post_init__(self):
        need(
            self,
            (self.split in SPLITS, f"split must be one of {', '.join(SPLITS)}"),
            (self.seq_len >= self.shortest, f"seq_len must be at least {self.shortest}"),
        )

    @property
    def tests(self) -> tuple[Task, ...]:
        """Keys that were trained on, and those held out."""
        return tuple(replace(self, split=split) for split in SPLITS)

    @property
    def shortest(self) -> int:
        """Least length at which the pattern fits and a key can be held out."""
        return 4

    @property
    def chance(self) -> float:
        """Of a guess that knows where the key stands."""
        return 1 / self.num_keys(FIRST_KEY, END_OF_KEYS)

    def num_keys(self, low: int, high: int) -> int:
        """Fewest keys in low .. high - 1 that may stand at a position."""
        whole, rest = divmod(high - low, self.seq_len - 1)
        return max(1, whole if self.split == "test" else high - low - whole - (rest > 0))

    def filler(self, n: int, generator: Generator) -> Tensor:
        """(n, seq_len) sequences without anchors."""
        return torch.randint(FIRST_KEY, END_OF_KEYS + 1, (n, self.seq_len), generator=generator)

    def places(self, n: int, width: int, generator: Generator, end: int | None = None) -> Tensor:
        """(n, 1) where a pattern of `width` begins, before `end`; all places are equally likely."""
        end = self.seq_len if end is None else end
        return torch.randint(end - width + 1, (n, 1), generator=generator)

    def keys(self, at: Tensor, generator: Generator, allowed: Tensor | None = None) -> Tensor:
        """(n, 1) keys of this split for positions `at` (n, 1), equally likely among those `allowed` (n, 80)."""
        candidates = torch.arange(FIRST_KEY, END_OF_KEYS)
        held_out = candidates % (self.seq_len - 1) == at % (self.seq_len - 1)
        mine = held_out if self.split == "test" else ~held_out
        if allowed is not None:
            mine = mine & allowed
        return FIRST_KEY + torch.multinomial(mine.float(), 1, generator=generator)


def last_answer(inputs: Tensor, answers: Tensor) -> Batch:
    """Answers (n, 1) due at the last position."""
    targets = no_answers(inputs)
    targets[:, -1:] = answers
    return Batch.of(inputs, targets)


def drawn(choices: tuple[int, ...], n: int, generator: Generator) -> Tensor:
    """(n, 1) of the choices, equally likely."""
    return torch.tensor(choices)[torch.randint(len(choices), (n, 1), generator=generator)]


def by_anchor(values: dict[int, int]) -> Tensor:
    """(20,) the value of each anchor, 0 for those that have none."""
    table = torch.zeros(FIRST_KEY, dtype=torch.long)
    table[list(values)] = torch.tensor(list(values.values()))
    return table
