"""short_conv on the GPU: a program walks BLOCK_D channels through a chunk of one sequence, its window in registers.

Each input is read once, but for the w - 1 rows that two chunks share. Going back, the activation's slope is computed
again on the way: x and dy are read once, dx is written once, and nothing of size t is kept between the passes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._autograd import differentiable
from .._channels import channels_last
from .._configs import Config, ConfigTable
from . import MAX_WIDTH, SHAPES

MIN_CHUNK, MAX_CHUNK = 32, 256  # rows that a program walks
BUSY_PROGRAMS = 1 << 12  # enough to fill a large GPU; only beyond that do chunks grow


def _table(kernel: str, rows: int) -> ConfigTable:
    """Widths are of the filter. BLOCK_D: channels of a program, four a lane. ROWS: that it loads before it computes."""
    config = dict(BLOCK_D=128, ROWS=rows, num_warps=1)
    return ConfigTable(
        kernel,
        {(maker, kind, MAX_WIDTH): config for maker in ("cuda", "hip") for kind in ("half", "float32")},
        {"BLOCK_D": (32, 64, 128, 256, 512), "ROWS": (2, 4, 8, 16), "num_warps": (1, 2, 4)},
    )


FORWARD = _table("short_conv_fwd_kernel", rows=8)
BACKWARD = _table("short_conv_bwd_kernel", rows=4)  # of x and of dy


@triton.jit
def _locate(num_sequences, T, CHUNK, D, cu_seqlens_ptr, BLOCK_D: tl.constexpr):
    """(slot, sequence, its first row, its end, first row of the chunk, channels) of this program.

    Packed sequence i owns the slots from cu_seqlens[i] // CHUNK + i on: at least one, and never fewer than its
    chunks. So the host knows the number of slots without looking at the borders; a few find nothing to do.
    """
    blocks_d = tl.cdiv(D, BLOCK_D)
    slot = tl.program_id(0) // blocks_d
    offs_d = (tl.program_id(0) % blocks_d) * BLOCK_D + tl.arange(0, BLOCK_D)
    if cu_seqlens_ptr is not None:
        sequence = 0
        beyond = num_sequences
        while beyond - sequence > 1:
            middle = (sequence + beyond) // 2
            if tl.load(cu_seqlens_ptr + middle).to(tl.int64) // CHUNK + middle <= slot:
                sequence = middle
            else:
                beyond = middle
        start = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
        end = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)
        first = start + (slot - start // CHUNK - sequence) * CHUNK
    else:
        chunks = tl.cdiv(T, CHUNK)
        sequence = slot // chunks
        start = tl.full((), 0, tl.int64)
        end = start + T
        first = start + (slot % chunks) * CHUNK
    return slot.to(tl.int64), sequence, start, end, first, offs_d


@triton.jit
def _seen(x_ptr, state_ptr, row, start, end, stride_xt, D, offs_d, W: tl.constexpr):
    """Input of a row (BLOCK_D,): from x, before the first token from the state, else zero."""
    mask_d = offs_d < D
    x = tl.load(x_ptr + row * stride_xt + offs_d, mask=mask_d & (row >= start) & (row < end), other=0.0).to(tl.float32)
    if state_ptr is not None:
        offs = (row - start + W - 1) * D + offs_d
        x += tl.load(state_ptr + offs, mask=mask_d & (row < start) & (row > start - W), other=0.0).to(tl.float32)
    return x


@triton.jit
def _load_filter(weight_ptr, bias_ptr, D, offs_d, W: tl.constexpr):
    """(the W taps, the bias), each (BLOCK_D,)."""
    mask_d = offs_d < D
    taps = ()
    for i in tl.static_range(W):
        taps += (tl.load(weight_ptr + offs_d * W + i, mask=mask_d, other=0.0).to(tl.float32),)
    bias = tl.zeros(offs_d.shape, tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    return taps, bias


@triton.jit(do_not_specialize=["num_sequences"])
def short_conv_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, state_ptr, cu_seqlens_ptr, y_ptr, last_ptr,
    num_sequences, T, D, CHUNK, stride_xb, stride_xt,
    W: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Walk down the chunk, ROWS rows at a time; the last W - 1 inputs stay in registers."""
    _, sequence, start, end, first, offs_d = _locate(num_sequences, T, CHUNK, D, cu_seqlens_ptr, BLOCK_D)
    mask_d = offs_d < D
    if cu_seqlens_ptr is None:
        x_ptr += sequence.to(tl.int64) * stride_xb
        y_ptr += sequence.to(tl.int64) * T * D
    last_ptr += sequence.to(tl.int64) * (W - 1) * D
    if state_ptr is not None:
        state_ptr += sequence.to(tl.int64) * (W - 1) * D
    taps, bias = _load_filter(weight_ptr, bias_ptr, D, offs_d, W)
    stop = tl.minimum(first + CHUNK, end)

    window = ()
    for i in tl.static_range(W - 1):
        window += (_seen(x_ptr, state_ptr, first - (W - 1) + i, start, end, stride_xt, D, offs_d, W),)
    for row in range(first, stop, ROWS):
        for i in tl.static_range(ROWS):
            x = tl.load(x_ptr + (row + i) * stride_xt + offs_d, mask=mask_d & (row + i < stop), other=0.0)
            window += (x.to(tl.float32),)
        for i in tl.static_range(ROWS):
            y = bias
            for tap in tl.static_range(W):
                y += taps[tap] * window[i + tap]
            if SILU:
                y *= tl.sigmoid(y)
            tl.store(y_ptr + (row + i) * D + offs_d, y, mask=mask_d & (row + i < stop))
        window = window[ROWS:]

    if (stop == end) & ((first < end) | (start == end)):  # the last row is here, or the sequence is empty
        for i in tl.static_range(W - 1):
            x = _seen(x_ptr, state_ptr, end - (W - 1) + i, start, end, stride_xt, D, offs_d, W)
            tl.store(last_ptr + i * D + offs_d, x, mask=mask_d)


@triton.jit(do_not_specialize=["num_sequences"])
def short_conv_bwd_kernel(
    x_ptr, weight_ptr, bias_ptr, state_ptr, cu_seqlens_ptr, dy_ptr, dlast_ptr, dx_ptr, dfilter_ptr, dstate_ptr,
    num_sequences, T, D, CHUNK, stride_xb, stride_xt, stride_dyb, stride_dyt,
    W: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Walk down the chunk and W - 1 rows on; two windows in registers, of x and of the gradient before the activation.

    At row r the gradient of row r - W + 1 is complete. Before the first token that is the state's.
    The gradients of filter and bias, summed over the rows of the chunk, go to this slot's W + 1 rows of dfilter.
    """
    slot, sequence, start, end, first, offs_d = _locate(num_sequences, T, CHUNK, D, cu_seqlens_ptr, BLOCK_D)
    mask_d = offs_d < D
    if cu_seqlens_ptr is None:
        x_ptr += sequence.to(tl.int64) * stride_xb
        dy_ptr += sequence.to(tl.int64) * stride_dyb
        dx_ptr += sequence.to(tl.int64) * T * D
    if state_ptr is not None:
        state_ptr += sequence.to(tl.int64) * (W - 1) * D
        dstate_ptr += sequence.to(tl.int64) * (W - 1) * D
    if dlast_ptr is not None:
        dlast_ptr += sequence.to(tl.int64) * (W - 1) * D
    taps, bias = _load_filter(weight_ptr, bias_ptr, D, offs_d, W)
    stop = tl.minimum(first + CHUNK, end)

    zero = tl.zeros((BLOCK_D,), tl.float32)
    window, slopes, dtaps = (), (), ()
    for i in tl.static_range(W - 1):
        window += (_seen(x_ptr, state_ptr, first - (W - 1) + i, start, end, stride_xt, D, offs_d, W),)
        slopes += (zero,)
    for _ in tl.static_range(W):
        dtaps += (zero,)
    dbias = zero
    for row in range(first, stop + W - 1, ROWS):
        dys = ()
        for i in tl.static_range(ROWS):
            mask = mask_d & (row + i < end)
            window += (tl.load(x_ptr + (row + i) * stride_xt + offs_d, mask=mask, other=0.0).to(tl.float32),)
            dys += (tl.load(dy_ptr + (row + i) * stride_dyt + offs_d, mask=mask, other=0.0).to(tl.float32),)
        for i in tl.static_range(ROWS):
            here = row + i
            slope = dys[i]
            if SILU:
                y = bias
                for tap in tl.static_range(W):
                    y += taps[tap] * window[i + tap]
                sigmoid = tl.sigmoid(y)
                slope *= sigmoid * (1 + y * (1 - sigmoid))
            slopes += (slope,)

            own = tl.where(here < stop, slope, 0.0)  # rows further on are summed by the next chunk
            dbias += own
            sums = ()
            for tap in tl.static_range(W):
                sums += (dtaps[tap] + own * window[i + tap],)
            dtaps = sums

            dx = zero
            for tap in tl.static_range(W):
                dx += taps[W - 1 - tap] * slopes[i + tap]
            if dlast_ptr is not None:
                is_last = (here >= end) & (here < end + W - 1)
                dx += tl.load(dlast_ptr + (here - end) * D + offs_d, mask=mask_d & is_last, other=0.0).to(tl.float32)
            complete = here - (W - 1)
            tl.store(dx_ptr + complete * D + offs_d, dx, mask=mask_d & (complete >= first) & (complete < stop))
            if state_ptr is not None:
                is_state = (first == start) & (complete < start)
                tl.store(dstate_ptr + (here - start) * D + offs_d, dx, mask=mask_d & is_state)
        window = window[ROWS:]
        slopes = slopes[ROWS:]

    dfilter_ptr += slot * (W + 1) * D
    for tap in tl.static_range(W):
        tl.store(dfilter_ptr + tap * D + offs_d, dtaps[tap], mask=mask_d)
    tl.store(dfilter_ptr + W * D + offs_d, dbias, mask=mask_d)


def _allocate(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    activation: str | None,
) -> list[Tensor]:  # fmt: skip
    n = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [y, x.new_empty(n, weight.shape[1] - 1, x.shape[2], dtype=torch.float32)]


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    activation: str | None,
) -> list[Tensor]:  # fmt: skip
    y, last = _allocate(x, weight, bias, state, cu_seqlens, activation)
    x = channels_last(x)
    weight, bias, state, cu_seqlens = map(_contiguous, (weight, bias, state, cu_seqlens))
    (b, t, d), n, width = x.shape, last.shape[0], weight.shape[1]
    config, chunk, num_slots = _tiles(FORWARD.pick(x.dtype, width), b, t, d, n, cu_seqlens is not None)
    short_conv_fwd_kernel[(num_slots * triton.cdiv(d, config["BLOCK_D"]),)](
        x, weight, bias, state, cu_seqlens, y, last, n, t, d, chunk, x.stride(0), x.stride(1),
        W=width, SILU=activation == "silu", **config,
    )  # fmt: skip
    return [y, last]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor | None,
    state: Tensor | None, cu_seqlens: Tensor | None, activation: str | None,
) -> list[Tensor | None]:  # fmt: skip
    dy, dlast = grads
    x, dy = channels_last(x), channels_last(torch.zeros_like(x) if dy is None else dy)
    weight, bias, state, cu_seqlens, dlast = map(_contiguous, (weight, bias, state, cu_seqlens, dlast))
    (b, t, d), n, width = x.shape, kept[1].shape[0], weight.shape[1]
    config, chunk, num_slots = _tiles(BACKWARD.pick(x.dtype, width), b, t, d, n, cu_seqlens is not None)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dfilter = x.new_empty(num_slots, width + 1, d, dtype=torch.float32)
    dstate = None if state is None else torch.empty_like(state)
    short_conv_bwd_kernel[(num_slots * triton.cdiv(d, config["BLOCK_D"]),)](
        x, weight, bias, state, cu_seqlens, dy, dlast, dx, dfilter, dstate,
        n, t, d, chunk, x.stride(0), x.stride(1), dy.stride(0), dy.stride(1),
        W=width, SILU=activation == "silu", **config,
    )  # fmt: skip
    dweight = dfilter[:, :width].sum(dim=0).T  # partial sums and no atomics: two runs agree to the last bit
    dbias = None if bias is None else dfilter[:, width].sum(dim=0)
    return [dx, dweight, dbias, dstate]


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _tiles(config: Config, b: int, t: int, d: int, n: int, packed: bool) -> tuple[Config, int, int]:
    """(the launch with no more than there is, rows of a chunk, number of slots); packed slots: see `_locate`."""
    block_d = min(config["BLOCK_D"], max(16, triton.next_power_of_2(d)))
    config = config | dict(BLOCK_D=block_d, ROWS=min(config["ROWS"], triton.next_power_of_2(t)))
    chunk = triton.next_power_of_2(b * t * triton.cdiv(d, block_d) // BUSY_PROGRAMS)
    chunk = min(max(chunk, MIN_CHUNK), MAX_CHUNK)
    return config, chunk, t // chunk + n if packed else b * triton.cdiv(t, chunk)


run = differentiable("short_conv_triton", SHAPES, _allocate, _forward, _backward, num_outputs=2)


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, cu_seqlens: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, last_inputs = run(x, weight, bias, state, cu_seqlens, activation)
    return y, last_inputs
