"""The kernels of long_conv. Two rows of the batch make one complex signal; spectra lie as (2, N): real, imaginary."""

import triton
import triton.language as tl

from ._fourier import grid_offsets, to_frequency, to_time


@triton.jit
def _tokens(N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    """Token at each place of time (N2 N3, N1), and whether it is in the first half: the second is padding."""
    offs_t = tl.arange(0, N2 * N3)[:, None] + tl.arange(0, N1)[None, :] * (N2 * N3)
    return offs_t, offs_t < N1 * N2 * N3 // 2


@triton.jit
def _load_pair(x_ptr, row, channel, start, num_rows, D, T, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    """N / 2 tokens from `start` of two rows of (num_rows, D, T); zero beyond the last row or token."""
    offs_t, first_half = _tokens(N1, N2, N3)
    inside = first_half & (start + offs_t < T)
    first_ptr = x_ptr + (row * D + channel) * T + start
    second_ptr = x_ptr + (row * D + D + channel) * T + start
    first = tl.load(first_ptr + offs_t, mask=inside, other=0.0)
    second = tl.load(second_ptr + offs_t, mask=inside & (row + 1 < num_rows), other=0.0)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _store_pair(
    x_ptr, re, im, row, channel, start, num_rows, D, T, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr
):
    offs_t, first_half = _tokens(N1, N2, N3)
    inside = first_half & (start + offs_t < T)
    first_ptr = x_ptr + (row * D + channel) * T + start
    second_ptr = x_ptr + (row * D + D + channel) * T + start
    tl.store(first_ptr + offs_t, re, mask=inside)
    tl.store(second_ptr + offs_t, im, mask=inside & (row + 1 < num_rows))


@triton.jit
def _load_spectrum(spectra_ptr, index, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    offs = index * (2 * N1 * N2 * N3) + grid_offsets(N1 * N2, N3)
    return tl.load(spectra_ptr + offs), tl.load(spectra_ptr + N1 * N2 * N3 + offs)


@triton.jit
def _store_spectrum(spectra_ptr, index, re, im, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    offs = index * (2 * N1 * N2 * N3) + grid_offsets(N1 * N2, N3)
    tl.store(spectra_ptr + offs, re)
    tl.store(spectra_ptr + N1 * N2 * N3 + offs, im)


@triton.jit
def _times(a_re, a_im, b_re, b_im, CONJUGATE: tl.constexpr):
    """a b, or a conj(b)."""
    if CONJUGATE:
        return a_re * b_re + a_im * b_im, a_im * b_re - a_re * b_im
    else:
        return a_re * b_re - a_im * b_im, a_im * b_re + a_re * b_im


@triton.jit
def _half_turn(N1: tl.constexpr, N2: tl.constexpr):
    """(-1)^k = (-1)^k1 as (N1 N2, 1): what a delay of N / 2 does to a spectrum."""
    return (1 - 2 * (tl.arange(0, N1 * N2) // N2 % 2)).to(tl.float32)[:, None]


@triton.jit
def long_conv_turn_kernel(
    x_ptr, gate_ptr, out_ptr, x_b, x_t, x_d, gate_b, gate_t, gate_d, out_b, out_t, out_d, T, D,
    HAS_GATE: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """One tile of x * gate, read in the order of x and written in that of out: (b, t, d) to (b, d, t) or back."""
    tiles_d = tl.cdiv(D, TILE_D)
    tiles = tiles_d * tl.cdiv(T, TILE_T)
    row, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    t = ((tile // tiles_d).to(tl.int64) * TILE_T + tl.arange(0, TILE_T))[:, None]
    d = ((tile % tiles_d).to(tl.int64) * TILE_D + tl.arange(0, TILE_D))[None, :]
    inside = (t < T) & (d < D)
    x = tl.load(x_ptr + row * x_b + t * x_t + d * x_d, mask=inside).to(tl.float32)
    if HAS_GATE:
        x *= tl.load(gate_ptr + row * gate_b + t * gate_t + d * gate_d, mask=inside).to(tl.float32)
    tl.store(out_ptr + row * out_b + t * out_t + d * out_d, x, mask=inside)


@triton.jit
def long_conv_spectrum_kernel(
    x_ptr, skip_ptr, spectra_ptr, tables_ptr, num_rows, D, T, num_blocks,
    IS_FILTER: tl.constexpr, HAS_SKIP: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Spectrum of one block of a pair of rows, or W_m of a filter: its block m, and block m - 1 half a turn behind."""
    index = tl.program_id(0).to(tl.int64)
    block, channel, row = index % num_blocks, index // num_blocks % D, index // num_blocks // D * 2
    start = block * (N1 * N2 * N3 // 2)
    re, im = _load_pair(x_ptr, row, channel, start, num_rows, D, T, N1, N2, N3)
    re, im = to_frequency(re, im, tables_ptr, N1, N2, N3, PRECISION)
    if IS_FILTER:
        if block == 0:
            if HAS_SKIP:
                re += tl.load(skip_ptr + channel).to(tl.float32)
        else:
            start -= N1 * N2 * N3 // 2
            late_re, late_im = _load_pair(x_ptr, row, channel, start, num_rows, D, T, N1, N2, N3)
            late_re, late_im = to_frequency(late_re, late_im, tables_ptr, N1, N2, N3, PRECISION)
            re += _half_turn(N1, N2) * late_re
            im += _half_turn(N1, N2) * late_im
    _store_spectrum(spectra_ptr, index, re, im, N1, N2, N3)


@triton.jit
def long_conv_fwd_kernel(
    u_ptr, taps_ptr, tables_ptr, out_ptr, num_rows, D, T,
    N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One channel of a pair of rows filtered, all on chip."""
    num_pairs = (num_rows + 1) // 2
    channel = tl.program_id(0).to(tl.int64) // num_pairs
    row = tl.program_id(0).to(tl.int64) % num_pairs * 2
    re, im = _load_pair(u_ptr, row, channel, 0, num_rows, D, T, N1, N2, N3)
    re, im = to_frequency(re, im, tables_ptr, N1, N2, N3, PRECISION)
    taps_re, taps_im = _load_spectrum(taps_ptr, channel, N1, N2, N3)
    re, im = _times(re, im, taps_re, taps_im, False)
    re, im = to_time(re, im, tables_ptr, N1, N2, N3, PRECISION)
    _store_pair(out_ptr, re, im, row, channel, 0, num_rows, D, T, N1, N2, N3)


@triton.jit
def long_conv_fwd_blocks_kernel(
    u_ptr, taps_ptr, tables_ptr, out_ptr, num_rows, D, T, num_blocks, num_windows,
    CONJUGATE: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of one channel of a pair of rows: sum_m U_{i-m} W_m, or with CONJUGATE sum_m U_{i+m} conj(W_m)."""
    index = tl.program_id(0).to(tl.int64)
    block, channel, row = index % num_blocks, index // num_blocks % D, index // num_blocks // D * 2
    reach = (num_blocks - block) if CONJUGATE else (block + 1)
    re = tl.zeros((N1 * N2, N3), tl.float32)
    im = tl.zeros((N1 * N2, N3), tl.float32)
    for m in range(tl.minimum(reach, num_windows)):
        u_re, u_im = _load_spectrum(u_ptr, (index + m) if CONJUGATE else (index - m), N1, N2, N3)
        taps_re, taps_im = _load_spectrum(taps_ptr, channel * num_windows + m, N1, N2, N3)
        more_re, more_im = _times(u_re, u_im, taps_re, taps_im, CONJUGATE)
        re += more_re
        im += more_im
    re, im = to_time(re, im, tables_ptr, N1, N2, N3, PRECISION)
    _store_pair(out_ptr, re, im, row, channel, block * (N1 * N2 * N3 // 2), num_rows, D, T, N1, N2, N3)


@triton.jit
def long_conv_bwd_filter_kernel(
    g_ptr, u_ptr, tables_ptr, dtaps_ptr, num_rows, D, num_blocks, num_tap_blocks, NUM_TAPS,
    N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block m of the gradient of one filter: G_{i+m}, and G_{i+m+1} half a turn ahead, against conj(U_i)."""
    m = tl.program_id(0).to(tl.int64) % num_tap_blocks
    channel = tl.program_id(0).to(tl.int64) // num_tap_blocks
    half_turn = _half_turn(N1, N2)
    re = tl.zeros((N1 * N2, N3), tl.float32)
    im = tl.zeros((N1 * N2, N3), tl.float32)
    for pair in range((num_rows + 1) // 2):
        first = (pair * D + channel) * num_blocks
        for i in range(num_blocks - m):
            g_re, g_im = _load_spectrum(g_ptr, first + i + m, N1, N2, N3)
            if i + m + 1 < num_blocks:
                next_re, next_im = _load_spectrum(g_ptr, first + i + m + 1, N1, N2, N3)
                g_re += half_turn * next_re
                g_im += half_turn * next_im
            u_re, u_im = _load_spectrum(u_ptr, first + i, N1, N2, N3)
            more_re, more_im = _times(g_re, g_im, u_re, u_im, True)
            re += more_re
            im += more_im
    re, im = to_time(re, im, tables_ptr, N1, N2, N3, PRECISION)
    _store_pair(dtaps_ptr, re, im, 0, channel, m * (N1 * N2 * N3 // 2), 1, D, NUM_TAPS, N1, N2, N3)
