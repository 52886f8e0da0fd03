"""NeedleInNoise: find in much noise what was said of a key."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._draw import distinct, subset
from ._task import Batch, Task, need, no_answers

MARK, ASK = 0, 1


@dataclass(frozen=True, kw_only=True)
class NeedleInNoise(Task):
    """Needles in a haystack of noise: several keys, several values of each, several questions.

    NeedleInNoise(num_keys=2, num_values=1, num_queries=1, seq_len=14, vocab_size=20)
    inputs    3  0  9 17  5  5  0 10 16  2  4  3  1 10      0 marks a needle: 9 has the value 17, 10 has 16
    targets   .  .  .  .  .  .  .  .  .  .  .  .  . 16      1 asks

    After ids 0 and 1, a third of the others is noise, a third keys, the rest values. Needles stand anywhere without
    touching; every arrangement is equally likely. At the end keys are asked, none twice, and the values already said
    are read back. RULER's single (1, 1, 1), multi-key (4, 1, 1), multi-value (1, 4, 1) and multi-query (4, 1, 4)
    needles (Hsieh et al. 2024, arXiv 2404.06654), without natural language.

    Fields:
        num_keys, num_values: needles, and values of each. num_queries: keys that are asked.
        seq_len: length. vocab_size: number of token ids.
    """

    num_keys: int = 4
    num_values: int = 1
    num_queries: int = 1
    seq_len: int = 256
    vocab_size: int = 256

    def __post_init__(self):
        shortest = self.num_keys * self._needle + self._questions
        third = (self.vocab_size - 2) // 3
        need(
            self,
            (min(self.num_keys, self.num_values) >= 1, "num_keys and num_values must be at least 1"),
            (1 <= self.num_queries <= self.num_keys, "num_queries must be in 1 .. num_keys"),
            (self.seq_len >= shortest, f"seq_len must be at least {shortest}, for all needles and questions"),
            (
                third >= self.num_keys * self.num_values,
                "vocab_size must be at least 3 * num_keys * num_values + 2, so that keys and values differ",
            ),
        )

    @property
    def chance(self) -> float:
        return 1 / self.num_keys

    @property
    def _needle(self) -> int:
        return 2 + self.num_values

    @property
    def _questions(self) -> int:
        return self.num_queries * self._needle - 1  # the last value is never read back

    def sample(self, n: int, generator: Generator) -> Batch:
        third, context = (self.vocab_size - 2) // 3, self.seq_len - self._questions
        inputs = 2 + torch.randint(third, (n, self.seq_len + 1), generator=generator)
        keys = distinct(n, 2 + third, 2 + 2 * third, self.num_keys, generator)
        values = distinct(n, 2 + 2 * third, self.vocab_size, self.num_keys * self.num_values, generator)
        values = values.view(n, self.num_keys, self.num_values)
        mark = torch.full((n, self.num_keys, 1), MARK)
        needles = torch.cat((mark, keys.unsqueeze(2), values), dim=2)  # (n, keys, needle)
        # Shrink each needle to one position, choose positions, and let the needles grow again.
        starts = subset(n, context - self.num_keys * (self._needle - 1), self.num_keys, generator)
        starts = starts + torch.arange(self.num_keys) * (self._needle - 1)
        inputs.scatter_(1, (starts.unsqueeze(2) + torch.arange(self._needle)).flatten(1), needles.flatten(1))
        asked = distinct(n, 0, self.num_keys, self.num_queries, generator)
        questions = needles.gather(1, asked.unsqueeze(2).expand(-1, -1, self._needle))
        questions[:, :, 0] = ASK
        inputs[:, context:] = questions.flatten(1)
        return Batch.of(inputs[:, :-1], self._targets(inputs))

    def solve(self, inputs: Tensor) -> Tensor:
        context, last = self.seq_len - self._questions, []
        for row in inputs.tolist():
            memory = {row[t + 1]: row[t + self._needle - 1] for t in range(context) if row[t] == MARK}
            asked = len(row) - self._needle + 2  # where the last question has its key
            last.append([memory[row[asked]]])
        return self._targets(torch.cat((inputs, torch.tensor(last)), dim=1))

    def _targets(self, text: Tensor) -> Tensor:
        """Of the whole sequence (n, seq_len + 1), the last value included: each value in the questions is due."""
        following = text[:, 1:]
        targets, value = no_answers(following), following >= 2 + 2 * ((self.vocab_size - 2) // 3)
        targets[:, -self._questions :] = torch.where(value, following, targets)[:, -self._questions :]
        return targets
