"""Rotary positions: queries and keys turned by their position, so that scores depend on distances."""

import torch
from torch import Tensor


def rotary_angles(position: int, t: int, k: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (t, 1, k / 2) of position * base^(-2i / k), for t tokens of which the first is at `position`."""
    compute = torch.promote_types(like.dtype, torch.float32)
    exponents = torch.arange(0, k, 2, device=like.device, dtype=compute) / k
    positions = torch.arange(position, position + t, device=like.device, dtype=compute)
    angles = positions[:, None, None] * base**-exponents
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels (i, i + k / 2) of x (b, t, h, k), in float32 or wider.

    Source: Su et al. 2021 (arXiv 2104.09864), eq. 34; the pairs are those of Llama (2302.13971).
    """
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def check_rotary(where: str, rotary_base: float | None, k: int) -> None:
    if rotary_base is None:
        return
    if rotary_base <= 0:
        raise ValueError(f"{where}: rotary_base must be positive, got {rotary_base}; use None for no positions")
    if k % 2:
        raise ValueError(f"{where}: rotary positions turn pairs of channels, so heads must be even, got head_dim={k}")
