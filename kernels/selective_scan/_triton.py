"""selective_scan on the GPU: a program walks BLOCK_D channels along a segment of time, their states in registers.

The states before every SPAN tokens are kept for the backward pass, never those of every token. Going back, a span is
walked again in runs of ROWS tokens, whose states all fit into registers, last run first.

Where channels alone would leave multiprocessors idle, time is cut into segments: a first pass finds what each adds to
the states, and then all are walked side by side.
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
SPAN = 32  # tokens between states that are kept: they take as much memory as m / 32 tensors of the size of x
ROWS = 8  # tokens of a run, whose inputs are loaded before they are used; it divides SPAN


def _table(kernel: str, rows: dict[int, tuple[int, int]]) -> ConfigTable:
    """Widths are numbers of states. BLOCK_D: channels of a program."""
    choices = {"BLOCK_D": (8, 16, 32, 64, 128), "num_warps": (1, 2, 4, 8)}
    return ConfigTable(
        kernel,
        {
            (maker, kind, width): dict(zip(choices, row, strict=True))
            for maker in ("cuda", "hip") for kind in ("half", "float32") for width, row in rows.items()
        },
        choices,
    )  # fmt: skip


PARTS = _table("selective_scan_parts_kernel", {16: (64, 4), 64: (16, 4), 256: (8, 4)})
FORWARD = _table("selective_scan_fwd_kernel", {16: (64, 4), 64: (16, 4), 256: (8, 4)})
BACKWARD = _table("selective_scan_bwd_kernel", {16: (64, 8), 64: (16, 8), 256: (8, 8)})


@triton.jit
def _load(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _first_kept(seqlens_ptr, sequence, first, T, SPAN: tl.constexpr):
    """Slot of a sequence's first span: packed sequence i owns those from cu_seqlens[i] // SPAN + i on."""
    if seqlens_ptr is not None:
        return first // SPAN + sequence
    else:
        return sequence * tl.cdiv(T, SPAN)


@triton.jit
def selective_scan_parts_kernel(
    x_ptr, dt_ptr, rates_ptr, enter_ptr, parts_ptr, steps_ptr, seqlens_ptr,
    x_strides, dt_strides, enter_strides, T, D, M: tl.constexpr, segment,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What a segment adds to the states (BLOCK_D, BLOCK_M), and the sum of its steps.

    With REVERSE, x and B are dy and C, and what is added to is the gradient of the states.
    """
    index, sequence, row, first, length, offs_d = locate(seqlens_ptr, T, D, segment, BLOCK_D)
    offs_m = tl.arange(0, BLOCK_M)
    mask_d, mask_m = offs_d < D, offs_m < M
    begin, end = index * segment, tl.minimum(index * segment + segment, length)
    if (begin >= length) | (begin == 0 if REVERSE else end == length):  # nothing, or nothing that anyone reads
        return
    offs_states = offs_d[:, None] * M + offs_m[None, :]
    mask_states = mask_d[:, None] & mask_m[None, :]
    rates = _load(rates_ptr + offs_states, mask_states) * LOG2_E
    x_ptr += row * x_strides[0] + first * x_strides[1]
    dt_ptr += row * dt_strides[0] + first * dt_strides[1]
    enter_ptr += row * enter_strides[0] + first * enter_strides[1]
    h = tl.zeros((BLOCK_D, BLOCK_M), tl.float32)
    steps = tl.zeros((BLOCK_D,), tl.float32)
    for passed in range(0, end - begin, ROWS):
        xs, dts, enters = (), (), ()
        for i in tl.static_range(ROWS):
            token = end - 1 - passed - i if REVERSE else begin + passed + i
            here = (token >= begin) & (token < end)
            xs += (_load(x_ptr + token * x_strides[1] + offs_d, mask_d & here),)
            dts += (_load(dt_ptr + token * dt_strides[1] + offs_d, mask_d & here),)
            enters += (_load(enter_ptr + token * enter_strides[1] + offs_m, mask_m & here),)
        for i in tl.static_range(ROWS):
            decay = tl.exp2(dts[i][:, None] * rates)
            if REVERSE:
                h += xs[i][:, None] * enters[i][None, :]
                h *= decay
            else:
                h = h * decay + (dts[i] * xs[i])[:, None] * enters[i][None, :]
            steps += dts[i]
    slot = sequence * tl.cdiv(T, segment) + index
    tl.store(parts_ptr + slot * D * M + offs_states, h, mask=mask_states)
    tl.store(steps_ptr + slot * D + offs_d, steps, mask=mask_d)


@triton.jit
def _carried(
    start_ptr, parts_ptr, steps_ptr, rates, sequence, segments, first, count, step: tl.constexpr, D, M: tl.constexpr,
    offs_d, mask_d, offs_states, mask_states,
):  # fmt: skip
    """The states, or their gradient, when `count` segments have passed since the start, the first of them `first`."""
    h = tl.zeros(offs_states.shape, tl.float32)
    if start_ptr is not None:
        h += _load(start_ptr + sequence * D * M + offs_states, mask_states)
    if parts_ptr is not None:
        for passed in range(count):
            slot = sequence * segments + first + step * passed
            h *= tl.exp2(_load(steps_ptr + slot * D + offs_d, mask_d)[:, None] * rates)
            h += _load(parts_ptr + slot * D * M + offs_states, mask_states)
    return h


@triton.jit
def selective_scan_fwd_kernel(
    x_ptr, dt_ptr, rates_ptr, enter_ptr, read_ptr, skip_ptr, y_ptr, kept_ptr, start_ptr, parts_ptr, steps_ptr, end_ptr,
    seqlens_ptr, x_strides, dt_strides, enter_strides, read_strides, T, D, M: tl.constexpr, segment,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Walk down a segment with the states (BLOCK_D, BLOCK_M) in registers."""
    index, sequence, row, first, length, offs_d = locate(seqlens_ptr, T, D, segment, BLOCK_D)
    offs_m = tl.arange(0, BLOCK_M)
    mask_d, mask_m = offs_d < D, offs_m < M
    begin, end = index * segment, tl.minimum(index * segment + segment, length)
    if (begin >= length) & (index > 0):
        return
    offs_states = offs_d[:, None] * M + offs_m[None, :]
    mask_states = mask_d[:, None] & mask_m[None, :]
    rates = _load(rates_ptr + offs_states, mask_states) * LOG2_E
    h = _carried(
        start_ptr, parts_ptr, steps_ptr, rates, sequence, tl.cdiv(T, segment), 0, index, 1, D, M,
        offs_d, mask_d, offs_states, mask_states,
    )  # fmt: skip
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if skip_ptr is not None:
        skip += _load(skip_ptr + offs_d, mask_d)
    x_ptr += row * x_strides[0] + first * x_strides[1]
    dt_ptr += row * dt_strides[0] + first * dt_strides[1]
    enter_ptr += row * enter_strides[0] + first * enter_strides[1]
    read_ptr += row * read_strides[0] + first * read_strides[1]
    y_ptr += (row * T + first) * D
    slot = _first_kept(seqlens_ptr, sequence, first, T, SPAN) + begin // SPAN
    for span in range(begin, end, SPAN):
        tl.store(kept_ptr + slot * D * M + offs_states, h.to(kept_ptr.dtype.element_ty), mask=mask_states)
        slot += 1
        for run in range(span, tl.minimum(span + SPAN, end), ROWS):
            xs, dts, enters, reads = (), (), (), ()
            for i in tl.static_range(ROWS):
                token = run + i
                here_d, here_m = mask_d & (token < end), mask_m & (token < end)
                xs += (_load(x_ptr + token * x_strides[1] + offs_d, here_d),)
                dts += (_load(dt_ptr + token * dt_strides[1] + offs_d, here_d),)
                enters += (_load(enter_ptr + token * enter_strides[1] + offs_m, here_m),)
                reads += (_load(read_ptr + token * read_strides[1] + offs_m, here_m),)
            for i in tl.static_range(ROWS):
                h = h * tl.exp2(dts[i][:, None] * rates) + (dts[i] * xs[i])[:, None] * enters[i][None, :]
                y = tl.sum(h * reads[i][None, :], 1) + skip * xs[i]
                here_d = mask_d & (run + i < end)
                tl.store(y_ptr + (run + i) * D + offs_d, y.to(y_ptr.dtype.element_ty), mask=here_d)
    if end == length:
        tl.store(end_ptr + sequence * D * M + offs_states, h, mask=mask_states)


@triton.jit
def selective_scan_bwd_kernel(
    x_ptr, dt_ptr, rates_ptr, enter_ptr, read_ptr, skip_ptr, dy_ptr, kept_ptr, dend_ptr, parts_ptr, steps_ptr,
    dx_ptr, ddt_ptr, drates_ptr, denter_ptr, dread_ptr, dskip_ptr, dstart_ptr, seqlens_ptr,
    x_strides, dt_strides, enter_strides, read_strides, dy_strides, B, T, D, M: tl.constexpr, segment,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Walk up a segment with the gradient of the states in registers, ROWS tokens at a time.

    The gradients of B and C, of these channels alone, go to this block's part of denter and dread; those of A and D,
    of this segment alone, to its part of drates and dskip.
    """
    index, sequence, row, first, length, offs_d = locate(seqlens_ptr, T, D, segment, BLOCK_D)
    offs_m = tl.arange(0, BLOCK_M)
    mask_d, mask_m = offs_d < D, offs_m < M
    begin, end = index * segment, tl.minimum(index * segment + segment, length)
    segments = tl.cdiv(T, segment)
    offs_states = offs_d[:, None] * M + offs_m[None, :]
    mask_states = mask_d[:, None] & mask_m[None, :]
    part = sequence * segments + index
    if (begin >= length) & (index > 0):
        tl.store(drates_ptr + part * D * M + offs_states, tl.zeros((BLOCK_D, BLOCK_M), tl.float32), mask=mask_states)
        if dskip_ptr is not None:
            tl.store(dskip_ptr + part * D + offs_d, tl.zeros((BLOCK_D,), tl.float32), mask=mask_d)
        return
    rates = _load(rates_ptr + offs_states, mask_states) * LOG2_E
    last = tl.cdiv(length, segment) - 1
    dh = _carried(
        dend_ptr, parts_ptr, steps_ptr, rates, sequence, segments, last, last - index, -1, D, M,
        offs_d, mask_d, offs_states, mask_states,
    )  # fmt: skip
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if skip_ptr is not None:
        skip += _load(skip_ptr + offs_d, mask_d)
    x_ptr += row * x_strides[0] + first * x_strides[1]
    dt_ptr += row * dt_strides[0] + first * dt_strides[1]
    enter_ptr += row * enter_strides[0] + first * enter_strides[1]
    read_ptr += row * read_strides[0] + first * read_strides[1]
    dy_ptr += row * dy_strides[0] + first * dy_strides[1]
    here = (row * T + first) * D
    dx_ptr += here
    ddt_ptr += here
    block = (tl.program_id(0) % tl.cdiv(D, BLOCK_D)).to(tl.int64)
    there = block * B * T * M + (row * T + first) * M
    denter_ptr += there
    dread_ptr += there
    drates = tl.zeros((BLOCK_D, BLOCK_M), tl.float32)
    dskip = tl.zeros((BLOCK_D,), tl.float32)
    kept = _first_kept(seqlens_ptr, sequence, first, T, SPAN)
    runs = tl.cdiv(end - begin, ROWS)
    for passed in range(runs):
        run = begin + (runs - 1 - passed) * ROWS
        span = run // SPAN
        h = _load(kept_ptr + (kept + span) * D * M + offs_states, mask_states)
        for token in range(span * SPAN, run):
            x = _load(x_ptr + token * x_strides[1] + offs_d, mask_d)
            dt = _load(dt_ptr + token * dt_strides[1] + offs_d, mask_d)
            enter = _load(enter_ptr + token * enter_strides[1] + offs_m, mask_m)
            h = h * tl.exp2(dt[:, None] * rates) + (dt * x)[:, None] * enter[None, :]
        states = (h,)
        for i in tl.static_range(ROWS):
            token = run + i
            here_d, here_m = mask_d & (token < end), mask_m & (token < end)
            x = _load(x_ptr + token * x_strides[1] + offs_d, here_d)
            dt = _load(dt_ptr + token * dt_strides[1] + offs_d, here_d)
            enter = _load(enter_ptr + token * enter_strides[1] + offs_m, here_m)
            h = h * tl.exp2(dt[:, None] * rates) + (dt * x)[:, None] * enter[None, :]
            states += (h,)
        for back in tl.static_range(ROWS):
            token = run + (ROWS - 1 - back)
            here_d, here_m = mask_d & (token < end), mask_m & (token < end)
            x = _load(x_ptr + token * x_strides[1] + offs_d, here_d)
            dt = _load(dt_ptr + token * dt_strides[1] + offs_d, here_d)
            dy = _load(dy_ptr + token * dy_strides[1] + offs_d, here_d)
            enter = _load(enter_ptr + token * enter_strides[1] + offs_m, here_m)
            read = _load(read_ptr + token * read_strides[1] + offs_m, here_m)
            dh += dy[:, None] * read[None, :]
            tl.store(dread_ptr + token * M + offs_m, tl.sum(dy[:, None] * states[ROWS - back], 0), mask=here_m)
            tl.store(denter_ptr + token * M + offs_m, tl.sum((dt * x)[:, None] * dh, 0), mask=here_m)
            entered = tl.sum(dh * enter[None, :], 1)
            dh *= tl.exp2(dt[:, None] * rates)
            dexponent = dh * states[ROWS - 1 - back]  # what reaches dt A
            drates += dexponent * dt[:, None]
            ddt = tl.sum(dexponent * rates, 1) / LOG2_E + entered * x
            tl.store(ddt_ptr + token * D + offs_d, ddt.to(ddt_ptr.dtype.element_ty), mask=here_d)
            dx = entered * dt + dy * skip
            tl.store(dx_ptr + token * D + offs_d, dx.to(dx_ptr.dtype.element_ty), mask=here_d)
            dskip += dy * x
    tl.store(drates_ptr + part * D * M + offs_states, drates, mask=mask_states)
    if dskip_ptr is not None:
        tl.store(dskip_ptr + part * D + offs_d, dskip, mask=mask_d)
    if dstart_ptr is not None and index == 0:
        tl.store(dstart_ptr + sequence * D * M + offs_states, dh, mask=mask_states)


def _allocate(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """y, the state after the last token, and those before each span."""
    (b, t, _), (d, m) = x.shape, A.shape
    n = b if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if cu_seqlens is None:  # noqa: SIM108
        kept = x.new_empty(b * -(-t // SPAN), d, m)
    else:  # where a sequence ends on a span's border a slot stays free: it is to hold the same in every run
        kept = x.new_zeros(t // SPAN + n, d, m)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return [y, x.new_empty(n, d, m, dtype=torch.float32), kept]


def _forward(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    y, last, kept = _allocate(x, dt, A, B, C, D, state, cu_seqlens)
    x, dt, B, C = map(channels_last, (x, dt, B, C))
    A, D, start = (None if z is None else z.contiguous() for z in (A, D, state))
    (_, t, d), n, m = x.shape, last.shape[0], A.shape[1]
    config = FORWARD.pick(x.dtype, m)
    blocks = triton.cdiv(d, config["BLOCK_D"])
    segment = segment_of(t, n * blocks, multiple=SPAN)
    parts, steps = _run_parts(x, dt, A, B, cu_seqlens, n, segment, reverse=False)
    selective_scan_fwd_kernel[(n * triton.cdiv(t, segment) * blocks,)](
        x, dt, A, B, C, D, y, kept, start, parts, steps, last, cu_seqlens, *_strides(x, dt, B, C), t, d, m, segment,
        BLOCK_M=triton.next_power_of_2(m), SPAN=SPAN, ROWS=ROWS, **config,
    )  # fmt: skip
    return [y, last, kept]


def _backward(
    grads: list[Tensor | None], outputs: list[Tensor],
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> list[Tensor | None]:  # fmt: skip
    (dy, dlast), (y, last, kept) = grads, outputs
    dy = torch.zeros_like(y) if dy is None else channels_last(dy)
    x, dt, B, C = map(channels_last, (x, dt, B, C))
    A, D, dlast = (None if z is None else z.contiguous() for z in (A, D, dlast))
    (b, t, d), n, m = x.shape, last.shape[0], A.shape[1]
    config = BACKWARD.pick(x.dtype, m)
    blocks = triton.cdiv(d, config["BLOCK_D"])
    segment = segment_of(t, n * blocks, multiple=SPAN)
    segments = triton.cdiv(t, segment)
    parts, steps = _run_parts(dy, dt, A, C, cu_seqlens, n, segment, reverse=True)
    dx, ddt = (torch.empty_like(z, memory_format=torch.contiguous_format) for z in (x, dt))
    dA = x.new_empty(n * segments, d, m, dtype=torch.float32)
    dD = None if D is None else x.new_empty(n * segments, d, dtype=torch.float32)
    dB, dC = (x.new_empty(blocks, b, t, m, dtype=torch.float32) for _ in range(2))
    dstart = None if state is None else torch.empty_like(last)
    selective_scan_bwd_kernel[(n * segments * blocks,)](
        x, dt, A, B, C, D, dy, kept, dlast, parts, steps, dx, ddt, dA, dB, dC, dD, dstart, cu_seqlens,
        *_strides(x, dt, B, C, dy), b, t, d, m, segment,
        BLOCK_M=triton.next_power_of_2(m), SPAN=SPAN, ROWS=ROWS, **config,
    )  # fmt: skip
    # Partial sums and no atomics: two runs agree to the last bit.
    return [dx, ddt, dA.sum(0), dB.sum(0), dC.sum(0), None if D is None else dD.sum(0), dstart]


def _run_parts(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, cu_seqlens: Tensor | None, n: int, segment: int, *, reverse: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(n, segments, d, m) sums and (n, segments, d) steps; None if there is one segment."""
    (_, t, d), m = x.shape, A.shape[1]
    segments = triton.cdiv(t, segment)
    if segments == 1:
        return None, None
    parts, steps = (x.new_empty(n, segments, d, *rest, dtype=torch.float32) for rest in ((m,), ()))
    config = PARTS.pick(x.dtype, m)
    selective_scan_parts_kernel[(n * segments * triton.cdiv(d, config["BLOCK_D"]),)](
        x, dt, A, B, parts, steps, cu_seqlens, *_strides(x, dt, B), t, d, m, segment,
        BLOCK_M=triton.next_power_of_2(m), ROWS=ROWS, REVERSE=reverse, **config,
    )  # fmt: skip
    return parts, steps


def _strides(*tensors: Tensor) -> list[tuple[int, int]]:
    """Of batch and time."""
    return [x.stride()[:2] for x in tensors]


run = differentiable("selective_scan_triton", SHAPES, _allocate, _forward, _backward, num_outputs=2)


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y, h, _ = run(x, dt, A, B, C, D, state, cu_seqlens)
    return y, h
