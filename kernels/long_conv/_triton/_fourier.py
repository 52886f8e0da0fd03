"""A Fourier transform on chip that makes a convolution causal: tables on the host, tiles in a kernel.

    X_k = sum_n x_n exp(-2 pi i n (k - 1/4) / N)

For these frequencies a delay of N tokens is a factor of i. So the product of the spectra of two real signals of N
tokens is that of their whole convolution: the first N tokens are the real part, the N after them the imaginary part.
No padding is needed, and no second signal to fill the imaginary part.

A transform of length N = N1 N2 N3 (N2 may be 1) is a product with the small matrix F of each factor, a twist T
between two of them, and a transposition; the quarter stands in F1 and T1 alone. Frequency k1 + N1 (k2 + N2 k3) ends
at (k1, k2, k3) and stays there: spectra that are multiplied with each other need no order. Factors are 16 or 32: what
tensor cores want, with operands that fit in registers.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

FACTORS = {256: (16, 1, 16), 512: (16, 1, 32), 1024: (32, 1, 32), 4096: (16, 16, 16)}  # N: (N1, N2, N3)


@lru_cache(maxsize=16)
def dft_tables(n1: int, n2: int, n3: int, device: torch.device) -> Tensor:
    """F1, F2, F3, T1 (N2 N3, N1) and T2 (N3, N2) in one row, each as cosines then sines."""
    planes = []
    for rows, columns, turn, quarters in (
        (n1, n1, n1, 1),
        (n2, n2, n2, 0),
        (n3, n3, n3, 0),
        (n2 * n3, n1, n1 * n2 * n3, 1),
        (n3, n2, n2 * n3, 0),
    ):
        # whole quarters of a step, so that no angle is rounded before its cosine
        steps = torch.outer(torch.arange(rows), 4 * torch.arange(columns) - quarters) % (4 * turn)
        angles = steps.double() * (2 * torch.pi / (4 * turn))
        planes += [angles.cos().flatten(), angles.sin().flatten()]
    return torch.cat(planes).float().to(device)


@triton.jit
def _table(tables_ptr, offs, START: tl.constexpr, PLANE: tl.constexpr, SIGN: tl.constexpr):
    """Cosines, and sines times SIGN: -1 towards frequency, 1 towards time."""
    return tl.load(tables_ptr + START + offs), SIGN * tl.load(tables_ptr + START + PLANE + offs)


@triton.jit
def grid_offsets(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _transform(
    re, im, tables_ptr, START: tl.constexpr, LENGTH: tl.constexpr, SIGN: tl.constexpr, PRECISION: tl.constexpr
):
    """Rows (.., LENGTH) times F, whose cosines and sines begin at START."""
    cos, sin = _table(tables_ptr, grid_offsets(LENGTH, LENGTH), START, LENGTH * LENGTH, SIGN)
    out_re = tl.dot(im, -sin, tl.dot(re, cos, input_precision=PRECISION), input_precision=PRECISION)
    out_im = tl.dot(re, sin, tl.dot(im, cos, input_precision=PRECISION), input_precision=PRECISION)
    return out_re, out_im


@triton.jit
def _twist(re, im, tables_ptr, offs, START: tl.constexpr, PLANE: tl.constexpr, SIGN: tl.constexpr):
    cos, sin = _table(tables_ptr, offs, START, PLANE, SIGN)
    return re * cos - im * sin, im * cos + re * sin


@triton.jit
def to_frequency(x, tables_ptr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr):
    """From a real signal (N2 N3, N1), token n1 N2 N3 + m at (m, n1), to its spectrum (N1 N2, N3)."""
    F2: tl.constexpr = 2 * N1 * N1
    F3: tl.constexpr = F2 + 2 * N2 * N2
    T1: tl.constexpr = F3 + 2 * N3 * N3
    T2: tl.constexpr = T1 + 2 * N1 * N2 * N3
    cos, sin = _table(tables_ptr, grid_offsets(N1, N1), 0, N1 * N1, -1)
    re = tl.dot(x, cos, input_precision=PRECISION)
    im = tl.dot(x, sin, input_precision=PRECISION)
    re, im = _twist(re, im, tables_ptr, grid_offsets(N2 * N3, N1), T1, N1 * N2 * N3, -1)
    if N2 > 1:
        re = tl.trans(tl.reshape(re, (N2, N3 * N1)))  # (N3 N1, N2)
        im = tl.trans(tl.reshape(im, (N2, N3 * N1)))
        re, im = _transform(re, im, tables_ptr, F2, N2, -1, PRECISION)
        offs = tl.arange(0, N3 * N1)[:, None] // N1 * N2 + tl.arange(0, N2)[None, :]
        re, im = _twist(re, im, tables_ptr, offs, T2, N3 * N2, -1)
    re = tl.trans(tl.reshape(re, (N3, N1 * N2)))  # (N1 N2, N3)
    im = tl.trans(tl.reshape(im, (N3, N1 * N2)))
    return _transform(re, im, tables_ptr, F3, N3, -1, PRECISION)


@triton.jit
def to_time(re, im, tables_ptr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr):
    """The real part of the signal (N2 N3, N1) of a spectrum (N1 N2, N3): the steps of `to_frequency` in reverse."""
    F2: tl.constexpr = 2 * N1 * N1
    F3: tl.constexpr = F2 + 2 * N2 * N2
    T1: tl.constexpr = F3 + 2 * N3 * N3
    T2: tl.constexpr = T1 + 2 * N1 * N2 * N3
    re, im = _transform(re, im, tables_ptr, F3, N3, 1, PRECISION)
    re = tl.trans(re)  # (N3, N1 N2)
    im = tl.trans(im)
    if N2 > 1:
        re = tl.reshape(re, (N3 * N1, N2))
        im = tl.reshape(im, (N3 * N1, N2))
        offs = tl.arange(0, N3 * N1)[:, None] // N1 * N2 + tl.arange(0, N2)[None, :]
        re, im = _twist(re, im, tables_ptr, offs, T2, N3 * N2, 1)
        re, im = _transform(re, im, tables_ptr, F2, N2, 1, PRECISION)
        re = tl.reshape(tl.trans(re), (N2 * N3, N1))
        im = tl.reshape(tl.trans(im), (N2 * N3, N1))
    re, im = _twist(re, im, tables_ptr, grid_offsets(N2 * N3, N1), T1, N1 * N2 * N3, 1)
    offs = tl.trans(grid_offsets(N1, N1))  # from k1 to n1
    cos, sin = _table(tables_ptr, offs, 0, N1 * N1, 1)
    x = tl.dot(im, -sin, tl.dot(re, cos, input_precision=PRECISION), input_precision=PRECISION)
    return x / (N1 * N2 * N3)
