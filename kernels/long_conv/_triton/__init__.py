"""long_conv on the GPU: Fourier transforms as matrix products, on chip from (b, t, d) to (b, t, d).

A program takes a few channels of a row, a block of N tokens at a time: gate, transform, product with the spectrum of
the filter, transform back, gate. A sequence of at most ON_CHIP tokens is one block. A longer one is cut: Y_i =
sum_{j<=i} U_j W_{i-j}, where the window W_m is the spectrum of the taps that lead from one block to another, m blocks
later; only then do spectra of blocks go through device memory. The skip joins the spectrum of the filter, being a
first tap. The backward pass transforms u again instead of keeping it, and sums over the batch in spectra.

Spectra of the taps are 16 bits beside 16-bit inputs, with a scale for each: as fine as the products of tensor cores.

A channel alone would use 2 of the 32 bytes of a sector. A program reads CHANNELS of them at once, and programs that
stand next to each other read the rest of the sector from the L2 cache: device memory is read once, but the cache is
asked for 32 / (CHANNELS * bytes of an element) times as much. More channels do not fit in registers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..._autograd import differentiable
from ..._target import knows_tf32
from .. import SHAPES
from ._configs import BACKWARD, FORWARD, SEVERAL, TAPS
from ._fourier import FACTORS, dft_tables
from ._kernels import long_conv_bwd_filter_kernel, long_conv_bwd_kernel, long_conv_fwd_kernel, long_conv_taps_kernel

ON_CHIP = 4096  # tokens of a block: the largest of FACTORS
LINE = 128  # bytes of memory whose channels are computed at about the same time
BUSY_PROGRAMS = 128  # below, the backward pass splits the batch


@dataclass(frozen=True)
class Plan:
    """Sizes of one call; time is cut into blocks of `length` tokens, and so are the taps that matter."""

    length: int
    num_taps: int
    num_blocks: int
    num_windows: int

    @property
    def width(self) -> int:
        """What launches are chosen by."""
        return self.length if self.num_blocks == 1 else SEVERAL


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _plan(x: Tensor, filter: Tensor) -> Plan:
    t = x.shape[1]
    length = next(n for n in FACTORS if n >= min(t, ON_CHIP))
    num_taps, num_blocks = min(filter.shape[1], t), _ceil_div(t, length)
    # the last block of taps reaches from one block into the next but one
    return Plan(length, num_taps, num_blocks, min(num_blocks, _ceil_div(num_taps, length) + 1))


def _transforms(plan: Plan, x: Tensor) -> tuple[Tensor, dict]:
    """The tables that every kernel reads, and keywords of every kernel."""
    n1, n2, n3 = FACTORS[plan.length]
    return dft_tables(n1, n2, n3, x.device), {"N1": n1, "N2": n2, "N3": n3, "PRECISION": _precision(x.dtype)}


def _precision(x_dtype: torch.dtype) -> str:
    """One pass of the tensor cores keeps 11 bits: enough for bfloat16, which has 8; three passes keep float32's."""
    if not knows_tf32():
        return "ieee"
    return "tf32" if x_dtype == torch.bfloat16 else "tf32x3"


def _strides(*tensors: Tensor | None) -> list[int]:
    return [stride for x in tensors for stride in ((0, 0, 0) if x is None else x.stride())]


def _spectra(x: Tensor, plan: Plan, rows: int) -> Tensor:
    return x.new_empty(rows, x.shape[2], plan.num_blocks, 2, plan.length, dtype=torch.float32)


def _allocate(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> list[Tensor]:
    """y; the windows of the filter, and the scale of each."""
    d, plan = x.shape[2], _plan(x, filter)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    kind = torch.float32 if x.dtype == torch.float32 else torch.float16
    taps = x.new_empty(d, plan.num_windows, 2, plan.length, dtype=kind)
    return [y, taps, x.new_empty(d, plan.num_windows, dtype=torch.float32)]


def _forward(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> list[Tensor]:
    (b, t, d), plan = x.shape, _plan(x, filter)
    y, taps, scales = _allocate(x, filter, skip, pre_gate, post_gate)
    tables, factors = _transforms(plan, x)
    long_conv_taps_kernel[(d * plan.num_windows,)](
        filter, None if skip is None else skip.contiguous(), taps, scales, tables,
        *filter.stride(), plan.num_taps, plan.num_windows, **factors, **TAPS.pick(x.dtype, plan.width),
    )  # fmt: skip
    config = FORWARD.pick(x.dtype, plan.width)
    neighbours = max(1, LINE // (config["CHANNELS"] * x.element_size()))
    programs = b * _ceil_div(d, config["CHANNELS"] * neighbours) * neighbours
    long_conv_fwd_kernel[(programs,)](
        x, pre_gate, post_gate, y, taps, scales, _spectra(x, plan, b if plan.num_blocks > 1 else 0), tables,
        *_strides(x, pre_gate, post_gate), b, t, d, plan.num_blocks, plan.num_windows,
        NEIGHBOURS=neighbours, **factors, **config,
    )  # fmt: skip
    return [y, taps, scales]


def _backward(
    grads: list[Tensor | None],
    kept: list[Tensor],
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> list[Tensor | None]:
    (dy,), (_, taps, scales), (b, t, d), plan = grads, kept, x.shape, _plan(x, filter)
    tables, factors = _transforms(plan, x)
    dx, dpre, dpost, dfilter, dskip = (
        None if like is None else torch.empty_like(like, memory_format=torch.contiguous_format)
        for like in (x, pre_gate, post_gate, filter, skip)
    )
    config = BACKWARD.pick(x.dtype, plan.width)
    groups = _ceil_div(d, config["CHANNELS"])
    num_splits = min(b, max(1, BUSY_PROGRAMS // groups))
    sums = x.new_empty(num_splits, d, plan.num_windows, 2, plan.length, dtype=torch.float32)
    u, g = (_spectra(x, plan, rows) for rows in (num_splits, num_splits if plan.num_blocks > 1 else 0))
    long_conv_bwd_kernel[(num_splits * groups,)](
        x, pre_gate, post_gate, dy, dx, dpre, dpost, taps, scales, u, g, sums, tables,
        *_strides(x, pre_gate, post_gate, dy), b, t, d, plan.num_blocks, plan.num_windows, num_splits,
        **factors, **config,
    )  # fmt: skip
    num_taps = filter.shape[1]
    long_conv_bwd_filter_kernel[(d * _ceil_div(num_taps, plan.length),)](
        sums, dfilter, dskip, tables, t, d, num_taps, plan.num_windows, num_splits,
        **factors, **TAPS.pick(x.dtype, plan.width),
    )  # fmt: skip
    return [dx, dfilter, dskip, dpre, dpost]


run = differentiable("long_conv_triton", SHAPES, _allocate, _forward, _backward, num_outputs=1)


def long_conv(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    return run(x, filter, skip, pre_gate, post_gate)[0]
