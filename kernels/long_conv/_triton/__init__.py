"""long_conv on the GPU: the Fourier transform as matrix products, for two rows of the batch in one complex signal.

The filter is real, so filtering z = u_1 + i u_2 gives y_1 + i y_2 and nothing needs unpacking. A sequence of at most
ON_CHIP tokens is transformed, multiplied with the spectrum of the filter and transformed back by one program for a
channel of a pair of rows. A longer one is cut into blocks of that size: Y_i = sum_{j<=i} U_j W_{i-j}, where W_m is
the spectrum of the taps that lead from one block to another, m blocks later. The backward pass takes spectra of
blocks for any length, since both the gradient of u and that of the filter want them: at the filter's, the sum over a
pair of rows is the real part of conj(U) G, whose cross terms are imaginary in time.

A column of (b, t, d) would use 4 bytes of each 32-byte sector; so u is laid out as (b, d, t) once, where the gate is
applied in passing, and the result likewise: three passes that are coalesced instead of one that is not. What lies
between the passes is float32. The skip joins the spectrum of the filter, being a first tap. Rows of a pair share one
transform, and so their rounding errors and what is not finite.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._autograd import differentiable
from ..._target import knows_tf32
from .. import SHAPES
from ._fourier import FACTORS, dft_tables
from ._kernels import (
    long_conv_bwd_filter_kernel,
    long_conv_fwd_blocks_kernel,
    long_conv_fwd_kernel,
    long_conv_spectrum_kernel,
    long_conv_turn_kernel,
)

ON_CHIP = 2048  # tokens of a block: half of a length in FACTORS
TILE_T, TILE_D = 64, 32


@dataclass(frozen=True)
class Plan:
    """Sizes of one call; time is cut into blocks of length / 2 tokens, and so are the taps that matter."""

    b: int
    t: int
    d: int
    num_taps: int
    length: int
    num_blocks: int
    num_tap_blocks: int

    @property
    def num_pairs(self) -> int:
        return _ceil_div(self.b, 2)

    @property
    def num_windows(self) -> int:
        """Spectra W_m that are not zero: the last block of taps reaches from one block into the next but one."""
        return min(self.num_blocks, self.num_tap_blocks + 1)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _plan(x: Tensor, filter: Tensor) -> Plan:
    b, t, d = x.shape
    num_taps = min(filter.shape[1], t)
    length = next(n for n in FACTORS if n >= 2 * min(t, ON_CHIP))
    return Plan(b, t, d, num_taps, length, _ceil_div(t, length // 2), _ceil_div(num_taps, length // 2))


def _options(plan: Plan, x_dtype: torch.dtype) -> dict:
    """Keywords of every kernel that transforms."""
    n1, n2, n3 = FACTORS[plan.length]
    return {"N1": n1, "N2": n2, "N3": n3, "PRECISION": _precision(x_dtype), "num_warps": _num_warps(plan.length)}


def _num_warps(length: int) -> int:
    return 4 if length <= 1024 else 8


def _precision(x_dtype: torch.dtype) -> str:
    """One pass of the tensor cores keeps 11 bits: enough for bfloat16, which has 8; three passes keep float32's."""
    if not knows_tf32():
        return "ieee"
    return "tf32" if x_dtype == torch.bfloat16 else "tf32x3"


def _tables(plan: Plan, x: Tensor) -> Tensor:
    return dft_tables(*FACTORS[plan.length], x.device)


def _turn(x: Tensor, gate: Tensor | None, out: Tensor) -> Tensor:
    """out = x * gate; all are indexed (b, t, d), whatever their order in memory."""
    b, t, d = x.shape
    grid = (b * _ceil_div(t, TILE_T) * _ceil_div(d, TILE_D),)
    strides = (*x.stride(), *(x if gate is None else gate).stride(), *out.stride())
    long_conv_turn_kernel[grid](x, gate, out, *strides, t, d, HAS_GATE=gate is not None, TILE_T=TILE_T, TILE_D=TILE_D)
    return out


def _time_last(x: Tensor, gate: Tensor | None) -> Tensor:
    """x * gate as (b, d, t) in float32."""
    b, t, d = x.shape
    out = torch.empty((b, d, t), dtype=torch.float32, device=x.device)
    _turn(x, gate, out.mT)
    return out


def _spectra(x: Tensor, plan: Plan, options: dict, num_blocks: int, skip: Tensor | None, is_filter: bool) -> Tensor:
    """Spectra (pairs, d, blocks, 2, N) of x (rows, d, t), or the windows of a filter (1, d, l)."""
    rows, d, t = x.shape
    shape = (_ceil_div(rows, 2), d, num_blocks, 2, plan.length)
    out = torch.empty(shape, dtype=torch.float32, device=x.device)
    long_conv_spectrum_kernel[(shape[0] * d * num_blocks,)](
        x, skip, out, _tables(plan, x), rows, d, t, num_blocks,
        IS_FILTER=is_filter, HAS_SKIP=skip is not None, **options,
    )  # fmt: skip
    return out


def _spectra_of_taps(filter: Tensor, skip: Tensor | None, plan: Plan, options: dict) -> Tensor:
    taps = filter[None, :, : plan.num_taps].contiguous()
    skip = None if skip is None else skip.contiguous()
    return _spectra(taps, plan, options, plan.num_windows, skip, is_filter=True)


def _spectra_of_blocks(x: Tensor, plan: Plan, options: dict) -> Tensor:
    return _spectra(x, plan, options, plan.num_blocks, None, is_filter=False)


def _filter_on_chip(u: Tensor, taps: Tensor, plan: Plan, options: dict) -> Tensor:
    """u (b, d, t) of one block, filtered."""
    out = torch.empty_like(u)
    grid = (plan.d * plan.num_pairs,)
    long_conv_fwd_kernel[grid](u, taps, _tables(plan, u), out, plan.b, plan.d, plan.t, **options)
    return out


def _filter_in_blocks(spectra: Tensor, taps: Tensor, plan: Plan, options: dict, conjugate: bool) -> Tensor:
    """(b, d, t): blocks filtered, or correlated with the filter."""
    out = torch.empty((plan.b, plan.d, plan.t), dtype=torch.float32, device=spectra.device)
    long_conv_fwd_blocks_kernel[(plan.num_pairs * plan.d * plan.num_blocks,)](
        spectra, taps, _tables(plan, spectra), out, plan.b, plan.d, plan.t, plan.num_blocks, plan.num_windows,
        CONJUGATE=conjugate, **options,
    )  # fmt: skip
    return out


def _filter_gradient(g: Tensor, u: Tensor, plan: Plan, options: dict) -> Tensor:
    """(d, num_taps) from spectra of blocks."""
    out = torch.empty((plan.d, plan.num_taps), dtype=torch.float32, device=u.device)
    sizes = (plan.b, plan.d, plan.num_blocks, plan.num_tap_blocks, plan.num_taps)
    long_conv_bwd_filter_kernel[(plan.d * plan.num_tap_blocks,)](g, u, _tables(plan, u), out, *sizes, **options)
    return out


def _allocate(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> list[Tensor]:
    """y; what precedes the post gate if there is one, (b, d, t); the spectra of the filter."""
    (b, t, d), plan = x.shape, _plan(x, filter)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    conv = x.new_empty((b, d, t) if post_gate is not None else (0,), dtype=torch.float32)
    return [y, conv, conv.new_empty(1, d, plan.num_windows, 2, plan.length)]


def _forward(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> list[Tensor]:
    plan = _plan(x, filter)
    options = _options(plan, x.dtype)
    taps = _spectra_of_taps(filter, skip, plan, options)
    u = _time_last(x, pre_gate)
    if plan.num_blocks == 1:
        conv = _filter_on_chip(u, taps, plan, options)
    else:
        conv = _filter_in_blocks(_spectra_of_blocks(u, plan, options), taps, plan, options, conjugate=False)
    y = _turn(conv.mT, post_gate, torch.empty_like(x, memory_format=torch.contiguous_format))
    return [y, conv.new_empty(0) if post_gate is None else conv, taps]


def _backward(
    grads: list[Tensor | None],
    kept: list[Tensor],
    x: Tensor,
    filter: Tensor,
    skip: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
) -> list[Tensor | None]:
    (dy,), (_, conv, taps), plan = grads, kept, _plan(x, filter)
    options = _options(plan, x.dtype)
    g = _spectra_of_blocks(_time_last(dy, post_gate), plan, options)
    u = _spectra_of_blocks(_time_last(x, pre_gate), plan, options)
    dtaps = _filter_gradient(g, u, plan, options)
    du = _filter_in_blocks(g, taps, plan, options, conjugate=True).mT
    dx = _turn(du, pre_gate, torch.empty_like(x))
    dpre = None if pre_gate is None else _turn(du, x, torch.empty_like(pre_gate))
    dpost = None if post_gate is None else _turn(conv.mT, dy, torch.empty_like(post_gate))
    dfilter = F.pad(dtaps, (0, filter.shape[1] - plan.num_taps))
    return [dx, dfilter, None if skip is None else dtaps[:, 0].clone(), dpre, dpost]


run = differentiable("long_conv_triton", SHAPES, _allocate, _forward, _backward, num_outputs=1)


def long_conv(
    x: Tensor, filter: Tensor, skip: Tensor | None, pre_gate: Tensor | None, post_gate: Tensor | None
) -> Tensor:
    return run(x, filter, skip, pre_gate, post_gate)[0]
