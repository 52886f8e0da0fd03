"""ReverseString, Dyck and StackManipulation: what a stack would do."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._task import Batch, Task, need, no_answers
from .copying import StringTask


@dataclass(frozen=True, kw_only=True)
class ReverseString(StringTask):
    """Say a string backwards (Deletang et al. 2022, arXiv 2207.02098; Li et al. 2024, arXiv 2405.04515).

    ReverseString(num_tokens=3, vocab_size=4)
    inputs    0  2  1  3  3  3      3 asks for one token more
    targets   .  .  .  1  2  0
    """

    num_tokens: int = 20
    vocab_size: int = 3

    def sample(self, n: int, generator: Generator) -> Batch:
        string = torch.randint(self.vocab_size - 1, (n, self.num_tokens), generator=generator)
        inputs = torch.cat((string, torch.full_like(string, self.vocab_size - 1)), dim=1)
        return Batch.of(inputs, self.solve(inputs))

    def solve(self, inputs: Tensor) -> Tensor:
        string = inputs[:, : self.num_tokens]
        return torch.cat((no_answers(string), string.flip(1)), dim=1)


@dataclass(frozen=True, kw_only=True)
class Dyck(Task):
    """Which bracket would close the innermost open one: Dyck-k of bounded depth (Hewitt et al. 2020, 2010.07515).

    Dyck(num_types=2, max_depth=3, seq_len=6)
    inputs    0  1  3  2  1  0      0 and 1 open, 2 and 3 close them
    targets   2  3  2  .  3  2

    Nothing is asked where nothing is open. From depth 0 a bracket opens, from max_depth one closes, elsewhere both are
    equally likely, and every type is. The question at each position is ours; the paper models the language.

    Fields:
        num_types: kinds of brackets. max_depth: most that are open at once. seq_len: length.
    """

    num_types: int = 4
    max_depth: int = 8
    seq_len: int = 64

    def __post_init__(self):
        need(
            self,
            (
                min(self.num_types, self.max_depth, self.seq_len) >= 1,
                "num_types, max_depth and seq_len must be at least 1",
            ),
        )

    @property
    def vocab_size(self) -> int:
        return 2 * self.num_types

    @property
    def chance(self) -> float:
        return 1 / self.num_types

    def sample(self, n: int, generator: Generator) -> Batch:
        kinds = torch.randint(self.num_types, (n, self.seq_len), generator=generator)
        wish = torch.rand(n, self.seq_len, generator=generator) < 0.5
        stack = torch.zeros(n, self.max_depth + 1, dtype=torch.long)
        depth = torch.zeros(n, 1, dtype=torch.long)
        inputs = torch.empty(n, self.seq_len, dtype=torch.long)
        targets = no_answers(inputs)
        for t in range(self.seq_len):
            kind, opens = kinds[:, t : t + 1], wish[:, t : t + 1]
            opens = ((depth == 0) | opens) & (depth < self.max_depth)
            top = stack.gather(1, depth)
            inputs[:, t : t + 1] = kind.where(opens, top + self.num_types)
            depth = depth + torch.where(opens, 1, -1)
            stack.scatter_(1, depth, kind.where(opens, stack.gather(1, depth)))
            targets[:, t : t + 1] = (stack.gather(1, depth) + self.num_types).where(depth > 0, targets[:, t : t + 1])
        return Batch.of(inputs, targets)

    def solve(self, inputs: Tensor) -> Tensor:
        targets = no_answers(inputs)
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            stack: list[int] = []
            for t, token in enumerate(row):
                if token < self.num_types:
                    stack.append(token)
                else:
                    stack.pop()
                if stack:
                    answer[t] = stack[-1] + self.num_types
        return targets


@dataclass(frozen=True, kw_only=True)
class StackManipulation(Task):
    """What a stack holds after some actions, from the top (Deletang et al. 2022, arXiv 2207.02098; Li et al. 2024).

    StackManipulation(stack_len=2, num_actions=2)
    inputs    0  1  4  3  5  5  5  5  5      the stack 0 1, its top at the right; 4 pops, 3 pushes 1; 5 asks
    targets   .  .  .  .  1  0  6  .  .

    0 and 1 are what stands on the stack, 2 pushes 0, 3 pushes 1, 4 pops (nothing, if the stack is empty), 5 asks for
    one token more, 6 says that there is none. Actions are equally likely.

    Fields:
        stack_len: tokens on the stack at first. num_actions: actions.
    """

    stack_len: int = 10
    num_actions: int = 10

    vocab_size = 7

    def __post_init__(self):
        need(self, (min(self.stack_len, self.num_actions) >= 1, "stack_len and num_actions must be at least 1"))

    @property
    def seq_len(self) -> int:
        return 2 * (self.stack_len + self.num_actions) + 1

    @property
    def chance(self) -> float:
        """Of a bit guessed blindly."""
        return 0.5

    def sample(self, n: int, generator: Generator) -> Batch:
        most = self.stack_len + self.num_actions
        held = torch.randint(2, (n, self.stack_len), generator=generator)
        actions = torch.randint(2, 5, (n, self.num_actions), generator=generator)
        stack = torch.cat((held, torch.zeros(n, self.num_actions + 1, dtype=torch.long)), dim=1)
        depth = torch.full((n, 1), self.stack_len)
        for action in actions.split(1, dim=1):
            stack.scatter_(1, depth, (action - 2).where(action < 4, stack.gather(1, depth)))
            depth = (depth + torch.where(action < 4, 1, -1)).clamp(min=0)
        below = depth - 1 - torch.arange(most + 1)  # the i-th answer stands so high on the stack
        answers = stack.gather(1, below.clamp(min=0)).where(below >= 0, 6)
        answers = answers.where(below >= -1, no_answers(answers))
        inputs = torch.cat((held, actions, torch.full((n, most + 1), 5)), dim=1)
        return Batch.of(inputs, torch.cat((no_answers(inputs[:, :most]), answers), dim=1))

    def solve(self, inputs: Tensor) -> Tensor:
        targets, most = no_answers(inputs), self.stack_len + self.num_actions
        for row, answer in zip(inputs.tolist(), targets, strict=True):
            stack = row[: self.stack_len]
            for action in row[self.stack_len : most]:
                if action < 4:
                    stack.append(action - 2)
                elif stack:
                    stack.pop()
            answer[most : most + len(stack) + 1] = torch.tensor([*reversed(stack), 6])
        return targets
