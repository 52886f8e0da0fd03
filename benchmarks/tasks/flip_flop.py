"""FlipFlop: recall the bit that was written last."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._draw import coins
from ._task import Batch, Task, need, no_answers

WRITE, READ, IGNORE = 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class FlipFlop(Task):
    """Flip-flop language (Liu et al. 2023, arXiv 2306.00946, def. 2): instructions, each with a bit.

    FlipFlop(num_instructions=4)
    inputs    2  1  4  0  3  1  3      2 writes, 4 is to be ignored, 3 reads
    targets   .  .  .  .  1  .  1

    The first instruction writes and the last reads. The bit after a read is the one written last, so that language
    modelling gives it too.

    Fields:
        num_instructions: so many, with the bit of the last left out.
        p_ignore: probability of an instruction to be ignored; the rest is shared by writing and reading.
    """

    num_instructions: int = 256
    p_ignore: float = 0.8

    vocab_size = 5

    def __post_init__(self):
        need(
            self,
            (self.num_instructions >= 2, "num_instructions must be at least 2"),
            (0 <= self.p_ignore < 1, "p_ignore must be in [0, 1)"),
        )

    @property
    def seq_len(self) -> int:
        return 2 * self.num_instructions - 1

    @property
    def chance(self) -> float:
        return 0.5

    def sample(self, n: int, generator: Generator) -> Batch:
        count = self.num_instructions
        instruction = torch.where(coins(n * count, generator), WRITE, READ)
        instruction = instruction.where(~coins(n * count, generator, self.p_ignore), IGNORE).view(n, count)
        instruction[:, 0], instruction[:, -1] = WRITE, READ
        bits = torch.randint(2, (n, count), generator=generator)
        written = torch.arange(count).where(instruction == WRITE, 0).cummax(dim=1).values
        bits = bits.where(instruction != READ, bits.gather(1, written))
        inputs = torch.stack((instruction, bits), dim=2).flatten(1)
        targets = no_answers(inputs)
        targets[:, 0::2] = bits.where(instruction == READ, targets[:, 0::2])
        return Batch.of(inputs[:, :-1], targets[:, :-1])

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            for t in range(0, self.seq_len, 2):
                if row[t] == WRITE:
                    written = row[t + 1]
                elif row[t] == READ:
                    answer[t] = written
        return targets
