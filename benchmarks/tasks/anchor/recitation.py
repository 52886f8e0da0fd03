"""Recitation: what stands on the other side of the anchors."""

from dataclasses import dataclass

from torch import Generator, Tensor

from .._draw import coins
from .._task import Batch, need, no_answers
from ._anchor import FIRST_KEY, AnchorTask, last_answer

DIRECTIONS = ("forward", "backward", "both")


@dataclass(frozen=True, kw_only=True)
class Recitation(AnchorTask):
    """a, 3, b was read: after a comes b (forward), after b comes a (backward; arXiv 2401.08309).

    Recitation()
    inputs   25 36 50  3 44 67 43 92 50      forward; with 44 at the end the answer is 50
    targets   .  .  .  .  .  .  .  . 44

    a and b are keys, each held out by its own position.

    Fields:
        direction: "forward", "backward", or "both", equally likely.
        num_anchors: 1 to 3 of the anchors 3, 4, 5 stand between.
    """

    direction: str = "both"
    num_anchors: int = 1

    def __post_init__(self):
        need(
            self,
            (self.direction in DIRECTIONS, f"direction must be one of {', '.join(DIRECTIONS)}"),
            (1 <= self.num_anchors <= 3, "num_anchors must be 1, 2 or 3"),
        )
        super().__post_init__()

    @property
    def shortest(self) -> int:
        return self.num_anchors + 3

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs, width = self.filler(n, generator), self.num_anchors + 2
        at = self.places(n, width, generator, end=self.seq_len - 1)
        a, b = self.keys(at, generator), self.keys(at + width - 1, generator)
        inputs.scatter_(1, at, a).scatter_(1, at + width - 1, b)
        for i in range(self.num_anchors):
            inputs.scatter_(1, at + 1 + i, 3 + i)
        forward = coins(n, generator, {"forward": 1.0, "backward": 0.0, "both": 0.5}[self.direction]).unsqueeze(1)
        inputs[:, -1:] = a.where(forward, b)
        return last_answer(inputs, b.where(forward, a))

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            at = next(t for t, token in enumerate(row) if token < FIRST_KEY)
            a, b = row[at - 1], row[at + self.num_anchors]
            answer[-1] = b if row[-1] == a else a
        return targets
