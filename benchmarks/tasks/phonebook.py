"""Phonebook: read a list of names and numbers, then say the number of one name."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ._draw import distinct
from ._task import Batch, Task, need, no_answers

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SYLLABLES = torch.tensor([[ord(c), ord(v)] for c in CONSONANTS for v in VOWELS])  # (70, 2)
SYLLABLES_OF_A_NAME = 3
NUM_NAMES = len(SYLLABLES) ** SYLLABLES_OF_A_NAME
NAME, NUMBER = 2 * SYLLABLES_OF_A_NAME, 12  # characters
LINE = NAME + 2 + NUMBER + 1


@dataclass(frozen=True, kw_only=True)
class Phonebook(Task):
    r"""Lines of names and numbers, then examples of questions, then one (Jelassi et al. 2024, arXiv 2402.01032).

    Phonebook(num_entries=2, num_examples=1)
    inputs    "Bakemo: 123-456-7890\nTiluna: 987-654-3210\nTiluna: 987-654-3210\nBakemo: 123-456-789"
    answers   1234567890

    Tokens are ASCII codes. A name is three syllables; the numbers' digits are uniform. The digits of the number that is
    asked for are due, each after those before it (the paper counts a number, here each digit counts).

    Fields:
        num_entries: lines of the book.
        num_examples: lines that show what a question is, of other entries than the one asked for.
    """

    num_entries: int = 20
    num_examples: int = 2

    vocab_size = 128

    def __post_init__(self):
        need(
            self,
            (0 <= self.num_examples < self.num_entries <= NUM_NAMES, "num_examples must be in 0 .. num_entries - 1"),
        )

    @property
    def seq_len(self) -> int:
        return (self.num_entries + self.num_examples + 1) * LINE - 2

    @property
    def chance(self) -> float:
        """Of a digit guessed blindly."""
        return 0.1

    def sample(self, n: int, generator: Generator) -> Batch:
        names = _names(distinct(n, 0, NUM_NAMES, self.num_entries, generator))
        digits = torch.randint(10, (n, self.num_entries, 10), generator=generator)
        lines = torch.cat((names, _text(n, self.num_entries, ": "), _numbers(digits)), dim=2)
        lines = torch.cat((lines, _text(n, self.num_entries, "\n")), dim=2)  # (n, entries, LINE)
        asked = distinct(n, 0, self.num_entries, self.num_examples + 1, generator)
        lines = torch.cat((lines, lines.gather(1, asked.unsqueeze(2).expand(-1, -1, LINE))), dim=1)
        text = lines.flatten(1)[:, :-1]
        return Batch.of(text[:, :-1], self._targets(text))

    def solve(self, inputs: Tensor) -> Tensor:
        last = []
        for row in inputs.tolist():
            *lines, question = "".join(map(chr, row)).split("\n")
            book = dict(line.split(": ") for line in lines)
            last.append([ord(c) for c in book[question[:NAME]][-1]])
        return self._targets(torch.cat((inputs, torch.tensor(last)), dim=1))

    def _targets(self, text: Tensor) -> Tensor:
        """Of the whole text (n, seq_len + 1), its last number included."""
        following = text[:, 1:]
        targets, digit = no_answers(following), following >= ord("0")
        targets[:, -NUMBER:] = torch.where(digit, following, targets)[:, -NUMBER:]
        return targets


def _names(ids: Tensor) -> Tensor:
    """(n, entries) -> (n, entries, NAME) characters."""
    powers = len(SYLLABLES) ** torch.arange(SYLLABLES_OF_A_NAME)
    names = SYLLABLES[ids.unsqueeze(2) // powers % len(SYLLABLES)].flatten(2)
    names[:, :, 0] += ord("A") - ord("a")
    return names


def _numbers(digits: Tensor) -> Tensor:
    """(n, entries, 10) -> (n, entries, NUMBER) characters, as 123-456-7890."""
    characters, dash = digits + ord("0"), torch.full_like(digits[..., :1], ord("-"))
    return torch.cat((characters[..., :3], dash, characters[..., 3:6], dash, characters[..., 6:]), dim=2)


def _text(n: int, entries: int, text: str) -> Tensor:
    return torch.tensor([ord(c) for c in text]).expand(n, entries, -1)
