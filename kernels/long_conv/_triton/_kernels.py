"""The kernels of long_conv: tiles of N tokens x CHANNELS; spectra lie as (2, N): real parts, imaginary parts."""

import triton
import triton.language as tl

from ._fourier import grid_offsets, to_frequency, to_time


@triton.jit
def _long(i):
    """64 bits of an index that may be a constant or an integer of Python."""
    return tl.zeros((), tl.int64) + i


@triton.jit
def _tokens(N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    """Token of a block at each place of time (N2 N3, N1)."""
    return tl.trans(grid_offsets(N1, N2 * N3))


@triton.jit
def _places(left, first, D, CHANNELS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    """(token of the block, channel, whether they exist) at each place of a tile (N2 N3, N1, CHANNELS)."""
    t = _tokens(N1, N2, N3)[:, :, None]
    d = first + tl.arange(0, CHANNELS)[None, None, :]
    return t.to(tl.int64), d.to(tl.int64), (t < left) & (d < D)


@triton.jit
def _load(x_ptr, x_b, x_t, x_d, row, start, places):
    """A tile of a tensor (b, t, d) of any strides, in float32; zero where nothing exists."""
    t, d, inside = places
    return tl.load(x_ptr + row * x_b + start * x_t + t * x_t + d * x_d, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _gated(x_ptr, x_b, x_t, x_d, gate_ptr, gate_b, gate_t, gate_d, row, start, places):
    x = _load(x_ptr, x_b, x_t, x_d, row, start, places)
    if gate_ptr is not None:
        x *= _load(gate_ptr, gate_b, gate_t, gate_d, row, start, places)
    return x


@triton.jit
def _store(y_ptr, y, T, D, row, start, places):
    """A tile of a contiguous tensor (b, t, d)."""
    t, d, inside = places
    tl.store(y_ptr + (row * T + start) * D + t * D + d, y, mask=inside)


@triton.jit
def _channel_of(tile, c, CHANNELS: tl.constexpr):
    return tl.sum(tl.where(tl.arange(0, CHANNELS)[None, None, :] == c, tile, 0.0), axis=2)


@triton.jit
def _with_channel(tile, c, x, CHANNELS: tl.constexpr):
    return tl.where(tl.arange(0, CHANNELS)[None, None, :] == c, x[:, :, None], tile)


@triton.jit
def _load_spectrum(spectra_ptr, index, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, mask=None):
    spectra_ptr += index * (2 * N1 * N2 * N3) + grid_offsets(N1 * N2, N3)
    re = tl.load(spectra_ptr, mask=mask, other=None if mask is None else 0.0)
    im = tl.load(spectra_ptr + N1 * N2 * N3, mask=mask, other=None if mask is None else 0.0)
    return re.to(tl.float32), im.to(tl.float32)


@triton.jit
def _store_spectrum(spectra_ptr, index, re, im, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    spectra_ptr += index * (2 * N1 * N2 * N3) + grid_offsets(N1 * N2, N3)
    tl.store(spectra_ptr, re)
    tl.store(spectra_ptr + N1 * N2 * N3, im)


@triton.jit
def _times(a_re, a_im, b_re, b_im, CONJUGATE: tl.constexpr):
    """a b, or a conj(b)."""
    if CONJUGATE:
        return a_re * b_re + a_im * b_im, a_im * b_re - a_re * b_im
    else:
        return a_re * b_re - a_im * b_im, a_im * b_re + a_re * b_im


@triton.jit
def _filtered(
    re, im, spectra_ptr, index, others, taps_ptr, scales_ptr, window, num_windows, tables_ptr,
    CONJUGATE: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block and the `others` before it in time, or after it with CONJUGATE: sum_m U_{i-m} W_m or U_{i+m} conj(W_m).

    re, im: spectrum of the block itself, whose place in spectra_ptr is `index`; the others are read from there.
    window: the first, W_0, of this channel's windows.
    """
    taps_re, taps_im = _load_spectrum(taps_ptr, window, N1, N2, N3)
    scale = tl.load(scales_ptr + window)
    re, im = _times(re, im, taps_re * scale, taps_im * scale, CONJUGATE)
    for m in range(1, tl.minimum(others + 1, num_windows)):
        u_re, u_im = _load_spectrum(spectra_ptr, (index + m) if CONJUGATE else (index - m), N1, N2, N3)
        taps_re, taps_im = _load_spectrum(taps_ptr, window + m, N1, N2, N3)
        scale = tl.load(scales_ptr + window + m)
        more_re, more_im = _times(u_re, u_im, taps_re * scale, taps_im * scale, CONJUGATE)
        re += more_re
        im += more_im
    return to_time(re, im, tables_ptr, N1, N2, N3, PRECISION)


@triton.jit
def _load_taps(filter_ptr, filter_l, start, num_taps, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr):
    t = start + _tokens(N1, N2, N3)
    return tl.load(filter_ptr + t.to(tl.int64) * filter_l, mask=t < num_taps, other=0.0).to(tl.float32)


@triton.jit
def long_conv_taps_kernel(
    filter_ptr, skip_ptr, taps_ptr, scales_ptr, tables_ptr, filter_d, filter_l, num_taps, num_windows,
    N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One window of one channel: the spectrum of block m of the taps, less i times that of block m - 1.

    It is stored as a part of the sum of its taps' magnitudes, which no frequency exceeds: so 16 bits can hold it.
    """
    index = tl.program_id(0).to(tl.int64)
    channel, m = index // num_windows, (index % num_windows).to(tl.int32)
    filter_ptr += channel * filter_d
    taps = _load_taps(filter_ptr, filter_l, m * (N1 * N2 * N3), num_taps, N1, N2, N3)
    scale = tl.sum(tl.sum(tl.abs(taps), axis=1), axis=0)
    re, im = to_frequency(taps, tables_ptr, N1, N2, N3, PRECISION)
    if m > 0:
        taps = _load_taps(filter_ptr, filter_l, (m - 1) * (N1 * N2 * N3), num_taps, N1, N2, N3)
        scale += tl.sum(tl.sum(tl.abs(taps), axis=1), axis=0)
        late_re, late_im = to_frequency(taps, tables_ptr, N1, N2, N3, PRECISION)
        re += late_im
        im -= late_re
    elif skip_ptr is not None:
        skip = tl.load(skip_ptr + channel).to(tl.float32)
        scale += tl.abs(skip)
        re += skip
    tl.store(scales_ptr + index, scale)
    scale = tl.where(scale == 0, 1.0, scale)
    _store_spectrum(taps_ptr, index, re / scale, im / scale, N1, N2, N3)


@triton.jit
def long_conv_fwd_kernel(
    x_ptr, pre_ptr, post_ptr, y_ptr, taps_ptr, scales_ptr, spectra_ptr, tables_ptr,
    x_b, x_t, x_d, pre_b, pre_t, pre_d, post_b, post_t, post_d, num_rows, T, D, num_blocks, num_windows,
    CHANNELS: tl.constexpr, NEIGHBOURS: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """CHANNELS of one row, block by block and channel by channel on chip; only later blocks want a block's spectrum.

    NEIGHBOURS programs whose channels share sectors of memory stand next to each other, then come the rows.
    """
    program = tl.program_id(0)
    row = (program // NEIGHBOURS % num_rows).to(tl.int64)
    first = (program // NEIGHBOURS // num_rows * NEIGHBOURS + program % NEIGHBOURS) * CHANNELS
    for block in range(num_blocks):
        start = _long(block) * (N1 * N2 * N3)
        places = _places(T - start, first, D, CHANNELS, N1, N2, N3)
        tile = _gated(x_ptr, x_b, x_t, x_d, pre_ptr, pre_b, pre_t, pre_d, row, start, places)
        for c in tl.range(tl.minimum(CHANNELS, D - first), disable_licm=True):
            re, im = to_frequency(_channel_of(tile, c, CHANNELS), tables_ptr, N1, N2, N3, PRECISION)
            index = (row * D + first + c) * num_blocks + block
            if block + 1 < num_blocks:
                _store_spectrum(spectra_ptr, index, re, im, N1, N2, N3)
            window = _long(first + c) * num_windows
            y = _filtered(
                re, im, spectra_ptr, index, block, taps_ptr, scales_ptr, window, num_windows, tables_ptr,
                False, N1, N2, N3, PRECISION,
            )  # fmt: skip
            tile = _with_channel(tile, c, y, CHANNELS)
        if post_ptr is not None:
            tile *= _load(post_ptr, post_b, post_t, post_d, row, start, places)
        _store(y_ptr, tile, T, D, row, start, places)
        tl.debug_barrier()


@triton.jit
def long_conv_bwd_kernel(
    x_ptr, pre_ptr, post_ptr, dy_ptr, dx_ptr, dpre_ptr, dpost_ptr,
    taps_ptr, scales_ptr, u_ptr, g_ptr, sums_ptr, tables_ptr,
    x_b, x_t, x_d, pre_b, pre_t, pre_d, post_b, post_t, post_d, dy_b, dy_t, dy_d,
    num_rows, T, D, num_blocks, num_windows, num_splits,
    CHANNELS: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """CHANNELS of every num_splits-th row: forwards in time for the post gate's gradient, then backwards for the rest.

    Each row finds the spectra U of u and G of its gradient, in room that the next row uses again; for the filter's
    gradient sum_i G_{i+m} conj(U_i) is summed over the rows in sums_ptr (splits, d, windows, 2, N).
    """
    groups = tl.cdiv(D, CHANNELS)
    split, first = tl.program_id(0) // groups, tl.program_id(0) % groups * CHANNELS
    num_channels = tl.minimum(CHANNELS, D - first)
    for i in range(split, num_rows, num_splits):
        row = _long(i)
        for block in range(num_blocks):
            start = _long(block) * (N1 * N2 * N3)
            places = _places(T - start, first, D, CHANNELS, N1, N2, N3)
            tile = _gated(x_ptr, x_b, x_t, x_d, pre_ptr, pre_b, pre_t, pre_d, row, start, places)
            for c in tl.range(num_channels, disable_licm=True):
                re, im = to_frequency(_channel_of(tile, c, CHANNELS), tables_ptr, N1, N2, N3, PRECISION)
                channel = _long(split) * D + first + c
                index = channel * num_blocks + block
                _store_spectrum(u_ptr, index, re, im, N1, N2, N3)
                if post_ptr is not None:
                    window = _long(first + c) * num_windows
                    z = _filtered(
                        re, im, u_ptr, index, block, taps_ptr, scales_ptr, window, num_windows, tables_ptr,
                        False, N1, N2, N3, PRECISION,
                    )  # fmt: skip
                    tile = _with_channel(tile, c, z, CHANNELS)
            if post_ptr is not None:
                tile *= _load(dy_ptr, dy_b, dy_t, dy_d, row, start, places)
                _store(dpost_ptr, tile, T, D, row, start, places)
            tl.debug_barrier()
        for reverse in range(num_blocks):
            block = num_blocks - 1 - reverse
            start = _long(block) * (N1 * N2 * N3)
            places = _places(T - start, first, D, CHANNELS, N1, N2, N3)
            tile = _gated(dy_ptr, dy_b, dy_t, dy_d, post_ptr, post_b, post_t, post_d, row, start, places)
            for c in tl.range(num_channels, disable_licm=True):
                re, im = to_frequency(_channel_of(tile, c, CHANNELS), tables_ptr, N1, N2, N3, PRECISION)
                channel = _long(split) * D + first + c
                index = channel * num_blocks + block
                for m in range(tl.minimum(block + 1, num_windows)):
                    u_re, u_im = _load_spectrum(u_ptr, index - m, N1, N2, N3)
                    sum_re, sum_im = _times(re, im, u_re, u_im, True)
                    place = channel * num_windows + m
                    begun = (i > split) | (reverse > 0)
                    old_re, old_im = _load_spectrum(sums_ptr, place, N1, N2, N3, begun)
                    _store_spectrum(sums_ptr, place, old_re + sum_re, old_im + sum_im, N1, N2, N3)
                if block > 0:
                    _store_spectrum(g_ptr, index, re, im, N1, N2, N3)
                window = _long(first + c) * num_windows
                du = _filtered(
                    re, im, g_ptr, index, reverse, taps_ptr, scales_ptr, window, num_windows, tables_ptr,
                    True, N1, N2, N3, PRECISION,
                )  # fmt: skip
                tile = _with_channel(tile, c, du, CHANNELS)
            if pre_ptr is not None:
                dpre = tile * _load(x_ptr, x_b, x_t, x_d, row, start, places)
                _store(dpre_ptr, dpre, T, D, row, start, places)
                tile *= _load(pre_ptr, pre_b, pre_t, pre_d, row, start, places)
            _store(dx_ptr, tile, T, D, row, start, places)
            tl.debug_barrier()


@triton.jit
def long_conv_bwd_filter_kernel(
    sums_ptr, dfilter_ptr, dskip_ptr, tables_ptr, T, D, L, num_windows, num_splits,
    N1: tl.constexpr, N2: tl.constexpr, N3: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block m of the gradient of one filter: sum m, plus i times sum m + 1; zero for taps beyond the sequence."""
    blocks = tl.cdiv(L, N1 * N2 * N3)
    channel, m = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks
    re = tl.zeros((N1 * N2, N3), tl.float32)
    im = tl.zeros((N1 * N2, N3), tl.float32)
    for split in range(num_splits):
        place = (split * D + channel) * num_windows + m
        sum_re, sum_im = _load_spectrum(sums_ptr, place, N1, N2, N3, m < num_windows)
        next_re, next_im = _load_spectrum(sums_ptr, place + 1, N1, N2, N3, m + 1 < num_windows)
        re += sum_re - next_im
        im += sum_im + next_re
    dtaps = to_time(re, im, tables_ptr, N1, N2, N3, PRECISION)
    t = m * (N1 * N2 * N3) + _tokens(N1, N2, N3)
    tl.store(dfilter_ptr + channel * L + t, tl.where(t < T, dtaps, 0.0), mask=t < L)
    if dskip_ptr is not None:
        tl.store(dskip_ptr + channel + 0 * t, dtaps, mask=t == 0)
