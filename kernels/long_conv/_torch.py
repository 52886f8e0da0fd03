"""long_conv in PyTorch: real Fourier transforms of some channels at a time, or Toeplitz products for short sequences.

A long filter is cut into blocks and so is the sequence: Y_i = sum_m U_{i-m} H_m over spectra of blocks. That is
no fewer operations, but they stay in a core's cache. A transform wants time contiguous, so each part of (b, t, d) is
turned round on the way into a padded buffer, and back on the way out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._autograd import differentiable
from . import SHAPES
from ._gates import gated, merged_taps, write_gradients
from ._toeplitz import pays, toeplitz_backward, toeplitz_forward

NUM_BLOCKS = 2  # of a filter: more make shorter transforms, but more products between spectra
MIN_BLOCK = 2048  # tokens; cutting finer does not pay
MIN_CHANNELS = 32  # two cache lines of a token in float32
BLOCK_ELEMENTS = 1 << 18  # tokens x channels that are transformed together on a CPU


@dataclass(frozen=True)
class Plan:
    """Time is cut into `num` blocks of `size` tokens, the filter into `num_taps`; each is transformed at `length`."""

    size: int
    num: int
    num_taps: int
    length: int
    channels: int
    rows: int


def _plan(x: Tensor, num_taps: int) -> Plan:
    b, t, d = x.shape
    size = _fast_length(max(MIN_BLOCK, -(-num_taps // NUM_BLOCKS)))
    if size >= t:
        size, length = t, _fast_length(t + num_taps - 1)
    else:
        length = 2 * size
    channels, rows = d, b
    if x.device.type == "cpu":
        channels = min(d, max(MIN_CHANNELS, BLOCK_ELEMENTS // t))
        rows = min(b, max(1, BLOCK_ELEMENTS // (t * channels)))
    return Plan(size, -(-t // size), -(-num_taps // size), length, channels, rows)


def _fast_length(at_least: int) -> int:
    """The next even number that has no prime factor above 7."""
    length = at_least + at_least % 2
    while not _is_smooth(length):
        length += 2
    return length


def _is_smooth(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


class Transform:
    """Time to spectra of blocks and back, through one buffer whose padding stays zero."""

    def __init__(self, plan: Plan, rows: int, like: Tensor, compute: torch.dtype):
        self.plan = plan
        self.padded = like.new_zeros(rows, plan.channels, plan.num, plan.length, dtype=compute)

    def forward(self, x: Tensor) -> Tensor:
        """(r, c, t) -> (r, c, blocks, length // 2 + 1)"""
        r, c, t = x.shape
        blocks = _slices(t, self.plan.size)
        padded = self.padded[:r, :c, : len(blocks)]
        for i, span in enumerate(blocks):
            padded[:, :, i, : span.stop - span.start] = x[:, :, span]
        return torch.fft.rfft(padded)

    def inverse(self, spectra: Tensor, out: Tensor, causal: bool) -> None:
        """Spectra to `out` (r, c, t). What leaves a block goes to the next; in a correlation, to the one before."""
        size = self.plan.size
        time = torch.fft.irfft(spectra, n=self.plan.length)
        if spectra.shape[2] > 1 and causal:
            time[:, :, 1:, :size] += time[:, :, :-1, size:]
        elif spectra.shape[2] > 1:
            time[:, :, :-1, :size] += time[:, :, 1:, size:]
        for i, span in enumerate(_slices(out.shape[2], size)):
            out[:, :, span] = time[:, :, i, : span.stop - span.start]


def _convolve_(u: Tensor, taps: Tensor) -> Tensor:
    """U_i <- sum_m U_{i-m} H_m over blocks, in place from the last block to the first."""
    for i in reversed(range(u.shape[2])):
        u[:, :, i] *= taps[:, 0]
        for m in range(1, min(i + 1, taps.shape[1])):
            u[:, :, i].addcmul_(u[:, :, i - m], taps[:, m])
    return u


def _correlate_(g: Tensor, conj_taps: Tensor) -> Tensor:
    """G_i <- sum_m G_{i+m} conj(H_m) over blocks, in place from the first block to the last."""
    for i in range(g.shape[2]):
        g[:, :, i] *= conj_taps[:, 0]
        for m in range(1, min(g.shape[2] - i, conj_taps.shape[1])):
            g[:, :, i].addcmul_(g[:, :, i + m], conj_taps[:, m])
    return g


def _add_taps_gradient_(total: Tensor, g: Tensor, conj_u: Tensor) -> None:
    """D_m += sum_i G_{i+m} conj(U_i) over blocks and rows."""
    for row_g, row_u in zip(g, conj_u, strict=True):
        for m in range(total.shape[1]):
            for i in range(g.shape[2] - m):
                total[:, m].addcmul_(row_g[:, i + m], row_u[:, i])


def _allocate(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> list[Tensor]:
    """y; what precedes the post gate; then u turned round for Toeplitz, else the conjugate spectra of taps and of u."""
    (b, t, d), compute = x.shape, torch.promote_types(x.dtype, torch.float32)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    z = x.new_empty((b, t, d) if post_gate is not None else (0,), dtype=compute)
    if pays(x):
        return [y, z, x.new_empty(b, d, t, dtype=compute)]
    plan = _plan(x, min(filter.shape[1], t))
    frequencies = plan.length // 2 + 1
    conj_taps = x.new_empty(d, plan.num_taps, frequencies, dtype=compute.to_complex())
    return [y, z, conj_taps, conj_taps.new_empty(b, d, plan.num, frequencies)]


def _forward(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> list[Tensor]:
    (b, t, d), compute = x.shape, torch.promote_types(x.dtype, torch.float32)
    y, z, *spectra = outputs = _allocate(x, filter, skip, pre_gate, post_gate)
    if pays(x):
        toeplitz_forward(x, merged_taps(filter, skip, t, compute), pre_gate, post_gate, y, z, *spectra)
        return outputs
    conj_taps, conj_u = spectra
    before_gate = y if post_gate is None else z
    plan = _plan(x, min(filter.shape[1], t))
    transform, taps_transform = (Transform(plan, rows, x, compute) for rows in (plan.rows, 1))
    for channels in _slices(d, plan.channels):
        taps = taps_transform.forward(filter[None, channels, :t])[0]
        if skip is not None:
            taps[:, 0] += skip[channels, None]
        torch.conj_physical(taps, out=conj_taps[channels])
        for rows in _slices(b, plan.rows):
            part = (rows, slice(None), channels)
            u = transform.forward(gated(x, pre_gate, part, compute).mT)
            torch.conj_physical(u, out=conj_u[rows, channels])
            transform.inverse(_convolve_(u, taps), before_gate[part].mT, causal=True)
            if post_gate is not None:
                torch.mul(z[part], post_gate[part], out=y[part])
    return outputs


def _backward(
    grads: list[Tensor | None],
    kept: list[Tensor],
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> list[Tensor | None]:
    (b, t, d), compute = x.shape, torch.promote_types(x.dtype, torch.float32)
    (dy,), (_, z, *spectra) = grads, kept
    dx, dpre, dpost = (None if like is None else torch.empty_like(like) for like in (x, pre_gate, post_gate))
    dfilter = filter.new_empty(filter.shape, dtype=compute)
    dfilter[:, t:] = 0  # taps beyond the last token
    if pays(x):
        taps = merged_taps(filter, skip, t, compute)
        toeplitz_backward(dy, z, *spectra, x, taps, pre_gate, post_gate, dx, dfilter[:, :t], dpre, dpost)
    else:
        conj_taps, conj_u = spectra
        plan = _plan(x, min(filter.shape[1], t))
        transform, taps_transform = (Transform(plan, rows, x, compute) for rows in (plan.rows, 1))
        # a lag before a block of taps belongs to the block before it, so one block more is needed
        num_taps = min(plan.num_taps + 1, plan.num)
        dtaps_buffer = conj_u.new_empty(plan.channels, num_taps, conj_u.shape[-1])
        for channels in _slices(d, plan.channels):
            dtaps = dtaps_buffer[: channels.stop - channels.start].zero_()
            for rows in _slices(b, plan.rows):
                part = (rows, slice(None), channels)
                du = gated(dy, post_gate, part, compute)
                g = transform.forward(du.mT)
                _add_taps_gradient_(dtaps, g, conj_u[rows, channels])
                du = torch.empty_like(du)
                transform.inverse(_correlate_(g, conj_taps[channels]), du.mT, causal=False)
                write_gradients(du, dy, z, x, pre_gate, part, dx, dpre, dpost)
            taps_transform.inverse(dtaps[None], dfilter[None, channels, :t], causal=False)
    return [dx, dfilter, None if skip is None else dfilter[:, 0].clone(), dpre, dpost]


run = differentiable("long_conv_torch", SHAPES, _allocate, _forward, _backward, num_outputs=1)


def long_conv(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    return run(x, filter, skip, pre_gate, post_gate)[0]
