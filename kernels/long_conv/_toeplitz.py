"""long_conv for short sequences in PyTorch: a channel's filter is a triangular Toeplitz matrix for the whole batch.

The product wants time last; sequences are gated and turned round in parts that stay in cache.
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
        for part in parts:
            u = _turned(gated(x, pre_gate, part, taps.dtype), turned_u, part)
            conv = torch.bmm(u, matrices.mT)
            if post_gate is None:
                y[part] = _turned_back(conv)
            else:
                z[part] = _turned_back(conv)
                torch.mul(z[part], post_gate[part], out=y[part])


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
        matrices = _matrices(taps[channels], t)
        dmatrices = taps.new_zeros(matrices.shape)
        for part in parts:
            rows, _, _ = part
            dconv = gated(dy, post_gate, part, taps.dtype).transpose(1, 2).contiguous().transpose(0, 1)
            dmatrices.baddbmm_(dconv.mT, turned_u[rows, channels].transpose(0, 1))
            du = _turned_back(torch.bmm(dconv, matrices)).contiguous()
            write_gradients(du, dy, z, x, pre_gate, part, dx, dpre, dpost)
        dtaps[channels] = _sum_diagonals(dmatrices)[:, : dtaps.shape[1]]


def _parts(x: Tensor) -> Iterator[tuple[slice, list[Part]]]:
    """For each block of channels: (channels, [a part of x])."""
    b, t, d = x.shape
    for c in range(0, d, CHANNELS):
        channels = slice(c, min(c + CHANNELS, d))
        step = max(1, BLOCK_ELEMENTS // (t * (channels.stop - channels.start)))
        yield channels, [(slice(r, r + step), slice(None), channels) for r in range(0, b, step)]


def _turned(x: Tensor, turned: Tensor, part: Part) -> Tensor:
    """Put (r, t, c) into its place in `turned` (b, d, t) and return that as (c, r, t): a matrix of rows a channel."""
    rows, _, channels = part
    place = turned[rows, channels]
    place.copy_(x.transpose(1, 2))
    return place.transpose(0, 1)


def _turned_back(x: Tensor) -> Tensor:
    """View (c, r, t) as (r, t, c)."""
    return x.permute(1, 2, 0)


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
