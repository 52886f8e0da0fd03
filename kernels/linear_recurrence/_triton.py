"""linear_recurrence on the GPU: a program walks BLOCK_D channels along a segment of time, h in registers.

Where channels alone would leave multiprocessors idle, time is cut into segments: a first pass finds what each adds to h
and lets fade, and then all are walked side by side. Going back, y is read instead of x: it is h.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._autograd import differentiable
from .._channels import channels_last, locate, segment_of
from .._configs import ConfigTable
from . import SHAPES

LOG2_E = tl.constexpr(1.4426950408889634)
ANY_WIDTH = 1  # a table's only width: nothing in a launch depends on the number of channels


def _table(kernel: str, rows: int) -> ConfigTable:
    """BLOCK_D: channels of a program, four a lane. ROWS: that it loads before it computes."""
    config = dict(BLOCK_D=128, ROWS=rows, num_warps=1)
    return ConfigTable(
        kernel,
        {(maker, kind, ANY_WIDTH): config for maker in ("cuda", "hip") for kind in ("half", "float32")},
        {"BLOCK_D": (32, 64, 128, 256), "ROWS": (4, 8, 16, 32), "num_warps": (1, 2, 4)},
    )


PARTS = _table("linear_recurrence_parts_kernel", rows=16)
FORWARD = _table("linear_recurrence_fwd_kernel", rows=16)
BACKWARD = _table("linear_recurrence_bwd_kernel", rows=8)


@triton.jit
def _decay(ptr, mask):
    """The factor; one where there is no token."""
    return tl.exp2(tl.load(ptr, mask=mask, other=0.0).to(tl.float32) * LOG2_E)


@triton.jit
def _carried(start_ptr, parts_ptr, totals_ptr, sequence, segments, first, count, step: tl.constexpr, D, offs_d):
    """h, or its gradient, when `count` segments have passed since the start, the first of them `first`."""
    mask_d = offs_d < D
    h = tl.zeros(offs_d.shape, tl.float32)
    if start_ptr is not None:
        h += tl.load(start_ptr + sequence * D + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    if parts_ptr is not None:
        for passed in range(count):
            slot = (sequence * segments + first + step * passed) * D + offs_d
            h = h * tl.load(totals_ptr + slot, mask=mask_d, other=0.0)
            h += tl.load(parts_ptr + slot, mask=mask_d, other=0.0)
    return h


@triton.jit
def linear_recurrence_parts_kernel(
    x_ptr, gate_ptr, parts_ptr, totals_ptr, seqlens_ptr,
    stride_xb, stride_xt, stride_gb, stride_gt, T, D, segment,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What a segment adds to h, and how much it lets fade. With REVERSE, x is dy and what is added to is dh."""
    index, sequence, row, first, length, offs_d = locate(seqlens_ptr, T, D, segment, BLOCK_D)
    mask_d = offs_d < D
    begin, end = index * segment, tl.minimum(index * segment + segment, length)
    if (begin >= length) | (begin == 0 if REVERSE else end == length):  # nothing, or nothing that anyone reads
        return
    x_ptr += row * stride_xb + first * stride_xt
    gate_ptr += row * stride_gb + first * stride_gt
    h = tl.zeros((BLOCK_D,), tl.float32)
    total = tl.full((BLOCK_D,), 1.0, tl.float32)
    for passed in range(0, end - begin, ROWS):
        xs, decays = (), ()
        for i in tl.static_range(ROWS):
            token = end - 1 - passed - i if REVERSE else begin + passed + i
            mask = mask_d & (token >= begin) & (token < end)
            xs += (tl.load(x_ptr + token * stride_xt + offs_d, mask=mask, other=0.0).to(tl.float32),)
            decays += (_decay(gate_ptr + token * stride_gt + offs_d, mask),)
        for i in tl.static_range(ROWS):
            h = (h + xs[i]) * decays[i] if REVERSE else h * decays[i] + xs[i]
            total *= decays[i]
    slot = (sequence * tl.cdiv(T, segment) + index) * D + offs_d
    tl.store(parts_ptr + slot, h, mask=mask_d)
    tl.store(totals_ptr + slot, total, mask=mask_d)


@triton.jit
def linear_recurrence_fwd_kernel(
    x_ptr, gate_ptr, y_ptr, start_ptr, parts_ptr, totals_ptr, end_ptr, seqlens_ptr,
    stride_xb, stride_xt, stride_gb, stride_gt, T, D, segment,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Walk down a segment, ROWS tokens at a time."""
    index, sequence, row, first, length, offs_d = locate(seqlens_ptr, T, D, segment, BLOCK_D)
    mask_d = offs_d < D
    begin, end = index * segment, tl.minimum(index * segment + segment, length)
    if (begin >= length) & (index > 0):
        return
    h = _carried(start_ptr, parts_ptr, totals_ptr, sequence, tl.cdiv(T, segment), 0, index, 1, D, offs_d)
    x_ptr += row * stride_xb + first * stride_xt
    gate_ptr += row * stride_gb + first * stride_gt
    y_ptr += (row * T + first) * D
    for start in range(begin, end, ROWS):
        xs, decays = (), ()
        for i in tl.static_range(ROWS):
            token = start + i
            mask = mask_d & (token < end)
            xs += (tl.load(x_ptr + token * stride_xt + offs_d, mask=mask, other=0.0).to(tl.float32),)
            decays += (_decay(gate_ptr + token * stride_gt + offs_d, mask),)
        for i in tl.static_range(ROWS):
            token = start + i
            h = h * decays[i] + xs[i]
            tl.store(y_ptr + token * D + offs_d, h.to(y_ptr.dtype.element_ty), mask=mask_d & (token < end))
    if end == length:
        tl.store(end_ptr + sequence * D + offs_d, h, mask=mask_d)


@triton.jit
def linear_recurrence_bwd_kernel(
    y_ptr, gate_ptr, dy_ptr, start_ptr, dend_ptr, dx_ptr, dgate_ptr, parts_ptr, totals_ptr, dstart_ptr, seqlens_ptr,
    stride_gb, stride_gt, stride_dyb, stride_dyt, T, D, segment,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Walk up a segment with dh in registers: dx_t = dh_t, dlog_decay_t = dh_t exp(log_decay_t) h_{t-1}."""
    index, sequence, row, first, length, offs_d = locate(seqlens_ptr, T, D, segment, BLOCK_D)
    mask_d = offs_d < D
    begin, end = index * segment, tl.minimum(index * segment + segment, length)
    if (begin >= length) & (index > 0):
        return
    last = tl.cdiv(length, segment) - 1
    segments = tl.cdiv(T, segment)
    dh = _carried(dend_ptr, parts_ptr, totals_ptr, sequence, segments, last, last - index, -1, D, offs_d)
    here = (row * T + first) * D
    y_ptr += here
    dx_ptr += here
    dgate_ptr += here
    gate_ptr += row * stride_gb + first * stride_gt
    dy_ptr += row * stride_dyb + first * stride_dyt
    start = tl.zeros((BLOCK_D,), tl.float32)
    if start_ptr is not None:
        start = tl.load(start_ptr + sequence * D + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    for passed in range(0, end - begin, ROWS):
        dys, befores, decays = (), (), ()
        for i in tl.static_range(ROWS):
            token = end - 1 - passed - i
            mask = mask_d & (token >= begin)
            dys += (tl.load(dy_ptr + token * stride_dyt + offs_d, mask=mask, other=0.0).to(tl.float32),)
            decays += (_decay(gate_ptr + token * stride_gt + offs_d, mask),)
            before = tl.load(y_ptr + (token - 1) * D + offs_d, mask=mask & (token > 0), other=0.0).to(tl.float32)
            befores += (tl.where(token > 0, before, start),)
        for i in tl.static_range(ROWS):
            token = end - 1 - passed - i
            mask = mask_d & (token >= begin)
            dh += dys[i]
            tl.store(dx_ptr + token * D + offs_d, dh.to(dx_ptr.dtype.element_ty), mask=mask)
            dh *= decays[i]
            tl.store(dgate_ptr + token * D + offs_d, (dh * befores[i]).to(dgate_ptr.dtype.element_ty), mask=mask)
    if dstart_ptr is not None and index == 0:
        tl.store(dstart_ptr + sequence * D + offs_d, dh.to(dstart_ptr.dtype.element_ty), mask=mask_d)


def _allocate(x: Tensor, log_decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> list[Tensor]:
    n = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [y, x.new_empty(n, x.shape[2], dtype=torch.float32)]


def _forward(x: Tensor, log_decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> list[Tensor]:
    y, last = _allocate(x, log_decay, state, cu_seqlens)
    x, log_decay = channels_last(x), channels_last(log_decay)
    start = None if state is None else state.contiguous()
    (_, t, d), n = x.shape, last.shape[0]
    config = FORWARD.pick(x.dtype, ANY_WIDTH)
    blocks = triton.cdiv(d, config["BLOCK_D"])
    segment = segment_of(t, n * blocks)
    parts, totals = _run_parts(x, log_decay, cu_seqlens, n, segment, reverse=False)
    linear_recurrence_fwd_kernel[(n * triton.cdiv(t, segment) * blocks,)](
        x, log_decay, y, start, parts, totals, last, cu_seqlens,
        *x.stride()[:2], *log_decay.stride()[:2], t, d, segment, **config,
    )  # fmt: skip
    return [y, last]


def _backward(
    grads: list[Tensor | None], kept: list[Tensor],
    x: Tensor, log_decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    (dy, dlast), (y, last) = grads, kept
    dy = torch.zeros_like(y) if dy is None else channels_last(dy)
    log_decay = channels_last(log_decay)
    start, dlast = (None if z is None else z.contiguous() for z in (state, dlast))
    (_, t, d), n = y.shape, last.shape[0]
    dx = torch.empty_like(y)
    dlog_decay = torch.empty_like(log_decay, memory_format=torch.contiguous_format)
    dstart = None if start is None else torch.empty_like(start)
    config = BACKWARD.pick(y.dtype, ANY_WIDTH)
    blocks = triton.cdiv(d, config["BLOCK_D"])
    segment = segment_of(t, n * blocks)
    parts, totals = _run_parts(dy, log_decay, cu_seqlens, n, segment, reverse=True)
    linear_recurrence_bwd_kernel[(n * triton.cdiv(t, segment) * blocks,)](
        y, log_decay, dy, start, dlast, dx, dlog_decay, parts, totals, dstart, cu_seqlens,
        *log_decay.stride()[:2], *dy.stride()[:2], t, d, segment, **config,
    )  # fmt: skip
    return [dx, dlog_decay, dstart]


def _run_parts(
    x: Tensor, log_decay: Tensor, cu_seqlens: Tensor | None, n: int, segment: int, *, reverse: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(n, segments, d) sums and (n, segments, d) factors; None if there is one segment."""
    _, t, d = x.shape
    segments = triton.cdiv(t, segment)
    if segments == 1:
        return None, None
    parts, totals = (x.new_empty(n, segments, d, dtype=torch.float32) for _ in range(2))
    config = PARTS.pick(x.dtype, ANY_WIDTH)
    linear_recurrence_parts_kernel[(n * segments * triton.cdiv(d, config["BLOCK_D"]),)](
        x, log_decay, parts, totals, cu_seqlens, *x.stride()[:2], *log_decay.stride()[:2], t, d, segment,
        REVERSE=reverse, **config,
    )  # fmt: skip
    return parts, totals


run = differentiable("linear_recurrence_triton", SHAPES, _allocate, _forward, _backward, num_outputs=2)


def linear_recurrence(
    x: Tensor, log_decay: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, h = run(x, log_decay, state, cu_seqlens)
    return y, h
