"""What the delta rules share in PyTorch: the inverse of a unit triangular matrix, and the walk from chunk to chunk.

The tokens of a chunk that begins with the memory S ask it under A, add V, make of that what they write, F, and write
it under K:

    F = U (V + A S)        S' = total S + K^T F
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from ._decays import Decay, diagonal_blocks, pass_on

LEAF = 16  # rows


def inverse(a: Tensor) -> Tensor:
    """(I - a)^-1 of strictly lower triangular a (N, c, c), c a power of two. No digits are lost where keys are alike:
    blocks of LEAF rows on the diagonal are solved by substitution, and joined, two to one, by

        (I - [[a1, 0], [a21, a2]])^-1 = [[x1, 0], [x2 a21 x1, x2]]

    which keeps a digit more than substitution through the whole chunk, and is faster.
    """
    num, c, _ = a.shape
    size = min(c, LEAF)
    leaves = diagonal_blocks(a, size).neg().view(-1, size, size)
    unit = _identity(size, a.dtype, a.device).expand_as(leaves)
    inverted = torch.zeros_like(a)
    solved = torch.linalg.solve_triangular(leaves, unit, upper=False, unitriangular=True)
    diagonal_blocks(inverted, size).copy_(solved.unflatten(0, (num, -1)))
    while size < c:
        pairs = diagonal_blocks(inverted, 2 * size)
        first, second = (pairs[:, :, half, half].flatten(0, 1) for half in (slice(size), slice(size, None)))
        between = diagonal_blocks(a, 2 * size)[:, :, size:, :size].flatten(0, 1)
        joined = torch.bmm(torch.bmm(second, between), first)
        pairs[:, :, size:, :size] = joined.unflatten(0, (num, -1))
        size *= 2
    return inverted


def walk(memories: Tensor, decay: Decay, asking: Tensor, inverted: Tensor, values: Tensor, writing: Tensor) -> Tensor:
    """F (N, c, v) of N = n g chunks, in turn; fills the memories.

    memories: (n + 1, g, k, v), the one before the first chunk, and what each chunk writes besides K^T F.
    asking, inverted, values, writing: A (N, c, k), U (N, c, c), V (N, c, v), which is used up, and K (N, c, k), as the
    next chunk reads it.
    """
    written = torch.empty_like(values)
    n = len(memories) - 1
    steps = zip(decay.totals(n), *_by_chunk(n, asking, inverted, values, writing, written), strict=True)
    for i, (total, asks, solving, known, keys, found) in enumerate(steps):
        torch.bmm(solving, known.baddbmm_(asks, memories[i]), out=found)
        pass_on(memories[i], memories[i + 1], total).baddbmm_(keys.mT, found)
    return written


def walk_back(
    dmemories: Tensor, decay: Decay, asking: Tensor, inverted: Tensor, dwritten: Tensor, writing: Tensor
) -> Tensor:
    """The gradient of V + A S (N, c, v), against time; completes those of F and of the memories.

    dmemories: (n + 1, g, k, v), that of the last memory, and what else reaches the one before each chunk.
    dwritten: (N, c, v), what else reaches F.
    """
    dvalues = torch.empty_like(dwritten)
    n = len(dmemories) - 1
    steps = zip(decay.totals(n), *_by_chunk(n, asking, inverted, dwritten, writing, dvalues), strict=True)
    for i, (total, asks, solving, dfound, keys, dknown) in reversed(list(enumerate(steps))):
        torch.bmm(solving.mT, dfound.baddbmm_(keys, dmemories[i + 1]), out=dknown)
        pass_on(dmemories[i + 1], dmemories[i], total).baddbmm_(asks.mT, dknown)
    return dvalues


def _by_chunk(n: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """(N, ...) of n g chunks as n views (g, ...)."""
    return (x.unflatten(0, (n, -1)).unbind() for x in tensors)


@lru_cache(maxsize=8)
def _identity(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(n, dtype=dtype, device=device)
