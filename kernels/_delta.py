"""What the delta rules share in PyTorch: the inverse of a unit triangular matrix, and the walk from chunk to chunk."""

from functools import lru_cache

import torch
from torch import Tensor

from ._decays import Decay


def inverse(a: Tensor) -> Tensor:
    """(I + a)^-1 of strictly lower triangular a (N, c, c), by substitution: no digits are lost where keys are alike."""
    unit = _identity(a.shape[-1], a.dtype, a.device).expand_as(a)
    return torch.linalg.solve_triangular(a, unit, upper=False, unitriangular=True)


def room_for_walk(groups: tuple[int, int], key: int, value: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memories (n + 1, g, k, v) of n chunks, to be filled, and views (n g, k, v) of those after and before a chunk."""
    n, g = groups
    memories = like.new_empty(n + 1, g, key, value)
    return memories, memories[1:].flatten(0, 1), memories[:-1].flatten(0, 1)


def walk(step: Tensor, memories: Tensor, carry: Tensor, decay: Decay) -> Tensor:
    """(n + 1, g, k, v): the memory before each of n chunks, and after the last. A chunk makes M S + B of S.

    step: (N, k, k) M of N = n g chunks; memories: what is returned, with the B of each chunk in the place of the
    memory after it; carry: (g, k, v) the memory before the first.
    """
    step = step.unflatten(0, (-1, len(carry)))
    decay.enter(carry, out=memories[0])
    for i in range(len(step)):
        memories[i + 1].baddbmm_(step[i], memories[i])
    return memories


def walk_back(step: Tensor, dmemories: Tensor, dcarry: Tensor) -> Tensor:
    """(n + 1, g, k, v): their gradients; what each chunk adds is in the place of that before it, dcarry is the last."""
    step = step.unflatten(0, (-1, len(dcarry)))
    dmemories[-1] = dcarry
    for i in reversed(range(len(step))):
        dmemories[i].baddbmm_(step[i].mT, dmemories[i + 1])
    return dmemories


@lru_cache(maxsize=8)
def _identity(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(n, dtype=dtype, device=device)
