"""What the inputs of several ops draw alike."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_log_decay(generator: torch.Generator, shape: tuple[int, ...], gates: Sequence[float] | None) -> Tensor:
    """In float64: mostly between -1 and 0, or of the values `gates`."""
    if gates is None:
        return -F.softplus(torch.randn(shape, generator=generator, dtype=torch.float64) - 2.0)
    drawn = torch.randint(len(gates), shape, generator=generator)
    return torch.tensor(gates, dtype=torch.float64)[drawn]
