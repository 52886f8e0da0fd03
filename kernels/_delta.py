"""What the delta rules share in PyTorch: the inverse of a unit triangular matrix, and the walk from chunk to chunk."""

from functools import lru_cache

import torch
from torch import Tensor

LEAF = 4  # rows of a block that is inverted by a series: longer ones lose digits where keys are alike


def inverse(a: Tensor) -> Tensor:
    """(I + a)^-1 of strictly lower triangular a (N, c, c), c a power of two.

    Of the blocks on the diagonal by (I - a)(I + a^2), for a^4 = 0; then two neighbours X and Y with the block
    b below X become [[X, 0], [-Y b X, Y]], and again.
    """
    c = a.shape[-1]
    size = min(LEAF, c)
    leaf = _diagonal(a, size).reshape(-1, size, size)
    identity = _identity(size, a.dtype, a.device)
    found, power = identity - leaf, leaf
    for _ in range((size - 1).bit_length() - 1):
        power = torch.bmm(power, power)
        found = torch.baddbmm(found, found, power)
    while size < c:
        upper, lower = found.view(-1, 2, size, size).unbind(1)
        below = _diagonal(a, 2 * size)[:, :, size:, :size].reshape(-1, size, size)
        joined = a.new_zeros(len(upper), 2 * size, 2 * size)
        joined[:, :size, :size] = upper
        joined[:, size:, size:] = lower
        joined[:, size:, :size] = torch.bmm(torch.bmm(lower, below), upper).neg_()
        found, size = joined, 2 * size
    return found


def walk(step: Tensor, offset: Tensor, carry: Tensor) -> Tensor:
    """(n + 1, g, k, v): the memory before each chunk, and after the last. A chunk makes M S + B of S.

    step: (N, k, k) M of N = n g chunks; offset: (N, k, v) B; carry: (g, k, v) the memory before the first.
    """
    step, offset = (x.unflatten(0, (-1, len(carry))) for x in (step, offset))
    memories = carry.new_empty(len(step) + 1, *carry.shape)
    memories[0] = carry
    for i in range(len(step)):
        torch.baddbmm(offset[i], step[i], memories[i], out=memories[i + 1])
    return memories


def walk_back(step: Tensor, offset: Tensor, dcarry: Tensor) -> Tensor:
    """(n + 1, g, k, v): gradients of the memories, the last one given; `offset` is what each chunk adds."""
    step, offset = (x.unflatten(0, (-1, len(dcarry))) for x in (step, offset))
    dmemories = dcarry.new_empty(len(step) + 1, *dcarry.shape)
    dmemories[-1] = dcarry
    for i in reversed(range(len(step))):
        torch.baddbmm(offset[i], step[i].mT, dmemories[i + 1], out=dmemories[i])
    return dmemories


@lru_cache(maxsize=8)
def _identity(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(n, dtype=dtype, device=device)


def _diagonal(a: Tensor, size: int) -> Tensor:
    """View (N, c / size, size, size) of the square blocks on the diagonal of contiguous (N, c, c)."""
    num, c, _ = a.shape
    return a.as_strided((num, c // size, size, size), (c * c, (c + 1) * size, c, 1), a.storage_offset())
