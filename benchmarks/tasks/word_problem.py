"""WordProblem: the product so far of a sequence of group elements; Parity, its smallest case."""

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

import torch
from torch import Generator, Tensor

from ._task import Batch, Task, need

ORDERS = {"Z2": 2, "Z60": 60, "A4xZ5": 60, "A5": 60, "S5": 120}


@dataclass(frozen=True, kw_only=True)
class WordProblem(Task):
    """State tracking (Merrill et al. 2024, arXiv 2404.08819): y_t = x_t y_{t-1} in a finite group, y_0 = 1.

    WordProblem(group="Z60", seq_len=4)
    inputs   59  3 10  0      Z60 adds modulo 60
    targets  59  2 12 12

    The word problem of A5 and S5 is complete for NC1, beyond what a linear recurrence with input-independent or
    diagonal transitions can do in a fixed number of layers; that of Z60 and of A4xZ5 is not. Elements are numbered with
    the identity first; of A5 and S5 they are permutations in lexicographic order, x y applies y first.

    Fields:
        group: "Z2", "Z60", "A4xZ5", "A5" or "S5". seq_len: length.
    """

    group: str = "A5"
    seq_len: int = 32

    def __post_init__(self):
        need(
            self,
            (self.group in ORDERS, f"group must be one of {', '.join(ORDERS)}"),
            (self.seq_len >= 1, "seq_len must be at least 1"),
        )

    @property
    def vocab_size(self) -> int:
        return ORDERS[self.group]

    @property
    def chance(self) -> float:
        return 1 / self.vocab_size

    @cached_property
    def _product(self) -> Tensor:
        """(g, g): x y."""
        match self.group:
            case "A4xZ5":
                a4, z5 = _of_permutations(4, even=True), _cyclic(5)
                return (5 * a4[:, None, :, None] + z5[None, :, None, :]).reshape(60, 60)
            case "A5":
                return _of_permutations(5, even=True)
            case "S5":
                return _of_permutations(5, even=False)
            case _:
                return _cyclic(self.vocab_size)

    def sample(self, n: int, generator: Generator) -> Batch:
        inputs = torch.randint(self.vocab_size, (n, self.seq_len), generator=generator)
        return Batch.of(inputs, self.solve(inputs))

    def solve(self, inputs: Tensor) -> Tensor:
        products = [inputs[:, 0]]
        for x in inputs[:, 1:].unbind(dim=1):
            products.append(self._product[x, products[-1]])
        return torch.stack(products, dim=1)


@dataclass(frozen=True, kw_only=True)
class Parity(WordProblem):
    """Whether the number of ones so far is odd: the word problem of Z2.

    Parity(seq_len=6)
    inputs    1  0  1  1  0  1
    targets   1  1  0  1  1  0

    Fields:
        seq_len: length.
    """

    group: str = "Z2"
    seq_len: int = 64


def _cyclic(order: int) -> Tensor:
    elements = torch.arange(order)
    return (elements[:, None] + elements) % order


def _of_permutations(count: int, even: bool) -> Tensor:
    """The product of permutations, or of the even ones."""
    elements = [p for p in permutations(range(count)) if not even or not _is_odd(p)]
    number = {p: i for i, p in enumerate(elements)}
    return torch.tensor([[number[tuple(x[i] for i in y)] for y in elements] for x in elements])


def _is_odd(permutation: tuple[int, ...]) -> bool:
    inversions = sum(a > b for i, a in enumerate(permutation) for b in permutation[i + 1 :])
    return inversions % 2 == 1
