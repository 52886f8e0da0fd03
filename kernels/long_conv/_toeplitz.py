"""long_conv for short sequences in PyTorch: a channel's filter is a triangular Toeplitz matrix for the whole batch.

The product wants the batch last; rows are gated and turned round in parts that stay in cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ._gates import Part, gated, write_gradients

MAX_LENGTH = 64  # beyond, transforms are faster
MIN_BATCH = 128  # fewer rows do not repay building the matrices
CHANNELS = 64  # whose matrices are held together
BLOCK_ELEMENTS = 1 << 18  # of the rows that are multiplied together


def pays(x: Tensor) -> bool:
    return x.shape[1] <= MAX_LENGTH and x.shape[0] >= MIN_BATCH


def toeplitz_forward(
    x: Tensor,
    taps: Tensor,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    y: Tensor,
    z: Tensor,
    turned_u: Tensor,
) -> None:
    """Fill y (b, t, d), z with what precedes the post gate if there is one, and turned_u for the backward pass."""
    t = x.shape[1]
    for channels, parts in _parts(x):
        matrices = _matrices(taps[channels], t)
        for part, place in parts:
            u = _turned(gated(x, pre_gate, part, taps.dtype), turned_u[place])
            conv = _turned_back(torch.bmm(matrices, u))
            if post_gate is None:
                y[part] = conv
            else:
                z[part] = conv
                torch.mul(conv, post_gate[part], out=y[part])


def toeplitz_backward(
    dy: Tensor,
    z: Tensor,
    turned_u: Tensor,
    x: Tensor,
    taps: Tensor,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    dx: Tensor,
    dtaps: Tensor,
    dpre: Tensor | None,
    dpost: Tensor | None,
) -> None:
    """Fill the gradients that are not None; dtaps is (d, n) as taps are."""
    t = x.shape[1]
    for channels, parts in _parts(x):
        transposed = _matrices(taps[channels], t).mT
        dmatrices = torch.zeros_like(transposed)
        for part, place in parts:
            dconv = gated(dy, post_gate, part, taps.dtype)
            dconv = _turned(dconv, torch.empty_like(turned_u[place]))
            dmatrices.baddbmm_(dconv, _as_turned(turned_u[place], x[part].shape).mT)
            du = _turned_back(torch.bmm(transposed, dconv))
            write_gradients(du, dy, z, x, pre_gate, part, dx, dpre, dpost)
        dtaps[channels] = _sum_diagonals(dmatrices)[:, : dtaps.shape[1]]


def _parts(x: Tensor) -> Iterator[tuple[slice, list[tuple[Part, slice]]]]:
    """For each block of channels: (channels, [(a part of x, its place in turned_u)])."""
    b, t, d = x.shape
    end = 0
    for c in range(0, d, CHANNELS):
        width = min(CHANNELS, d - c)
        step = max(1, BLOCK_ELEMENTS // (t * width))
        parts = []
        for r in range(0, b, step):
            start, end = end, end + min(step, b - r) * t * width
            parts.append(((slice(r, r + step), slice(None), slice(c, c + CHANNELS)), slice(start, end)))
        yield slice(c, c + CHANNELS), parts


def _as_turned(place: Tensor, shape: torch.Size) -> Tensor:
    """A place of turned_u that holds a part of shape (b, t, c), as (c, t, b)."""
    b, t, c = shape
    return place.view(t, c, b).transpose(0, 1)


def _turned(x: Tensor, place: Tensor) -> Tensor:
    """(b, t, c) -> (c, t, b), by one transposition of a matrix into `place`."""
    b, t, c = x.shape
    place.view(t * c, b).copy_(x.view(b, t * c).T)
    return _as_turned(place, x.shape)


def _turned_back(x: Tensor) -> Tensor:
    """(c, t, b) -> (b, t, c)"""
    c, t, b = x.shape
    return x.transpose(0, 1).reshape(t * c, b).T.contiguous().view(b, t, c)


def _matrices(taps: Tensor, t: int) -> Tensor:
    """(c, n) -> (c, t, t), M_ij = taps_{i-j}: all windows of the padded taps, their columns turned round."""
    c, n = taps.shape
    padded = taps.new_zeros(c, 2 * t - 1)
    padded[:, t - 1 : t - 1 + n] = taps
    return padded.unfold(1, t, 1).flip(2)


def _sum_diagonals(m: Tensor) -> Tensor:
    """(c, t, t) -> (c, t), the sums over i - j = 0, 1, ...: row i is moved right by i, then columns are summed."""
    c, t, _ = m.shape
    skewed = m.new_zeros(c, t, 2 * t + 1)
    skewed[:, :, :t] = m.flip(2)
    return skewed.view(c, -1)[:, : 2 * t * t].view(c, t, 2 * t).sum(dim=1)[:, t - 1 : 2 * t - 1]
