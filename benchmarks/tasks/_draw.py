"""Random draws that several tasks share; rows are independent, and each is uniform over what it may be."""

import torch
from torch import Generator, Tensor


def distinct(n: int, low: int, high: int, count: int, generator: Generator) -> Tensor:
    """(n, count) integers in low .. high - 1, none twice in a row; every such row is equally likely."""
    if 4 * count > high - low:
        return low + torch.rand(n, high - low, generator=generator).topk(count).indices
    # Drawing repeated ones anew favours no id over another, so the rows stay uniform.
    drawn = torch.randint(low, high, (n, count), generator=generator)
    while (again := repeated(drawn)).any():
        drawn[again] = torch.randint(low, high, (int(again.sum()),), generator=generator)
    return drawn


def avoiding(taken: Tensor, vocab_size: int, length: int, generator: Generator) -> Tensor:
    """(n, length) ids, uniform over 0 .. vocab_size - 1 without those `taken` (n, count) in the row, all distinct."""
    n, count = taken.shape
    rank = torch.randint(vocab_size - count, (n, length), generator=generator)  # among the ids left
    # The i-th smallest one taken has taken_i - i ids left below it; each that lies at or below shifts the rank by one.
    left_below = taken.sort(dim=1).values - torch.arange(count)
    return rank + torch.searchsorted(left_below, rank, right=True)


def power_law_slots(n: int, num_slots: int, count: int, power_a: float, generator: Generator) -> Tensor:
    """(n, count) slots drawn one after the other without replacement, p(g) ~ (g + 1)^(power_a - 1)."""
    weight = torch.arange(1, num_slots + 1, dtype=torch.float64).pow(power_a - 1).float()
    # A race of exponential clocks: the order in which they ring is the order of such draws.
    rings = torch.empty(n, num_slots).exponential_(generator=generator) / weight
    return rings.topk(count, largest=False, sorted=True).indices


def subset(n: int, size: int, count: int, generator: Generator) -> Tensor:
    """(n, count) indices below `size`, ascending, none twice; every subset is equally likely."""
    return distinct(n, 0, size, count, generator).sort(dim=1).values


def shuffled(x: Tensor, generator: Generator) -> Tensor:
    """The columns of (n, count) in an order of its own for each row."""
    return x.gather(1, torch.rand(x.shape, generator=generator).argsort(dim=1))


def picked(x: Tensor, generator: Generator) -> Tensor:
    """(n,) one column of (n, count) for each row."""
    return x.gather(1, torch.randint(x.shape[1], (len(x), 1), generator=generator)).squeeze(1)


def coins(n: int, generator: Generator, p: float = 0.5) -> Tensor:
    """(n,) True with probability p."""
    return torch.rand(n, generator=generator) < p


def repeated(x: Tensor) -> Tensor:
    """True where a row already had that integer further left."""
    ordered, order = x.sort(dim=1, stable=True)
    repeated = torch.zeros_like(x, dtype=torch.bool)
    return repeated.scatter_(1, order[:, 1:], ordered[:, 1:] == ordered[:, :-1])
