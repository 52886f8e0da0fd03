"""polynomial_attention on the GPU: features are formed in registers, never in device memory.

Time is cut into segments about as long as the state has rows. Inside a segment weights are formed block by block, as
FlashAttention does but without the softmax; each segment leaves one state in device memory, so time is linear for
every head dim up to 256, all segments run side by side, and the states together are about as large as v.

    sum     features(k)^T v of each segment, in tiles of 16 x 16 products
    scan    these sums become the states before each segment
    out     y: the weights inside the segment, and the state at its border read through features(q)
    step    one token with a state, as decoding has it: all of this in one pass over the state

Backward is the same with time reversed and queries and keys exchanged: sum and scan of features(q)^T dy give the
states' gradients, out gives dv, and one more kernel gives dq and dk. No atomics: results do not vary.

Operands of products are bfloat16 for bfloat16 inputs. For float16 they are tf32, which holds every float16 exactly:
squared scores and sums of features would pass 65504, float16's largest number.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..._autograd import differentiable
from .. import EPSILON, SHAPES, num_features
from .backward import polynomial_attention_bwd_kernel, polynomial_attention_bwd_normaliser_kernel
from .forward import polynomial_attention_out_kernel, polynomial_attention_scan_kernel, polynomial_attention_sum_kernel
from .step import polynomial_attention_step_kernel
from .walk import Walks

MIN_SEGMENT = 256
GROUP = 16  # head dims whose products with 16 others are one tile of features
SUM_TOKENS = 32
SCAN_BLOCK = 1024
NORMALISER_ROWS = 16


@dataclass(frozen=True)
class _Tiles:
    """What one program of `out` and of the gradient kernel takes; with these sizes no registers spill."""

    tokens: int
    channels: int  # of v
    gradient_channels: int  # of one step of the kernel for dq and dk
    num_warps: int
    num_stages: int
    operand: tl.dtype
    precision: str


TILES = {
    torch.bfloat16: _Tiles(32, 64, 32, 8, 1, tl.bfloat16, "tf32"),
    torch.float16: _Tiles(32, 32, 32, 4, 1, tl.float32, "tf32"),
    # Without tensor cores a product is unrolled into registers: more warps share a smaller one.
    torch.float32: _Tiles(32, 32, 16, 8, 1, tl.float32, "ieee"),
}
# One group of dims and one block of channels leave the registers for twice the tokens.
NARROW_TILES = TILES | {torch.bfloat16: _Tiles(64, 64, 64, 4, 2, tl.bfloat16, "tf32")}


def segment_length(r: int) -> int:
    """A power of two near r: forming a segment's weights then costs about as much as reading its state."""
    return max(MIN_SEGMENT, 1 << (r.bit_length() - 1))


@dataclass(frozen=True)
class _Units:
    """The blocks or segments, `size` tokens each, into which all sequences are cut."""

    size: int
    count: int
    per_sequence: int  # without packing
    owners: Tensor | None  # (count,) sequence of each unit, with packing
    firsts: Tensor | None  # (n + 1,) first unit of each sequence, with packing


def _units(size: int, b: int, t: int, cu_seqlens: Tensor | None) -> _Units:
    if cu_seqlens is None:
        per_sequence = triton.cdiv(t, size)
        return _Units(size, b * per_sequence, per_sequence, None, None)
    # An upper bound, because the true count would have to be fetched from the device.
    n = cu_seqlens.shape[0] - 1
    count = t // size + n
    firsts = torch.zeros_like(cu_seqlens, dtype=torch.int64)
    torch.cumsum((cu_seqlens.diff() + size - 1) // size, 0, out=firsts[1:])
    units = torch.arange(count, device=cu_seqlens.device)
    owners = torch.searchsorted(firsts[1:], units, right=True).clamp_(max=n - 1)
    return _Units(size, count, 0, owners, firsts)


class _Call:
    """One call of the op: the sizes and options that every launch of it passes on."""

    def __init__(self, q, k, v, cu_seqlens, coefficients, scale, normalize):
        (self.b, self.t, self.h, d), width = q.shape, v.shape[3]
        self.cu_seqlens, self.normalize, self.coefficients, self.like = cu_seqlens, normalize, coefficients, (q, v)
        self.c0, self.c1, self.c2 = coefficients[0], coefficients[1] * scale, coefficients[2] * scale**2
        self.r, self.w = num_features(d, coefficients), width + normalize
        is_narrow = d <= GROUP and width <= NARROW_TILES[q.dtype].channels
        self.tiles = (NARROW_TILES if is_narrow else TILES)[q.dtype]
        self.block_v = min(self.tiles.channels, max(16, triton.next_power_of_2(width)))
        self.block_k = max(GROUP, triton.next_power_of_2(d))
        self.v_blocks = triton.cdiv(width, self.block_v)
        self.n = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        self.segments = _units(segment_length(self.r), self.b, self.t, cu_seqlens)
        self.blocks = _units(self.tiles.tokens, self.b, self.t, cu_seqlens)
        self.constants = dict(
            H=self.h, K=d, V=width, R=self.r, W=self.w, SEGMENT=self.segments.size, BLOCK_I=GROUP,
            OPERAND=self.tiles.operand, PRECISION=self.tiles.precision, HAS_ONE=coefficients[0] != 0,
            HAS_LINEAR=coefficients[1] != 0, HAS_SQUARE=coefficients[2] != 0, NORMALIZE=normalize,
            PACKED=cu_seqlens is not None, num_stages=self.tiles.num_stages,
        )  # fmt: skip

    def states(self, x, u, factor, last, first, after, *, is_gradient: bool) -> Tensor:
        """States before each segment (after it, for gradients); `after` receives what the last one leaves."""
        states = x.new_empty(self.segments.count, self.h, self.r, self.w, dtype=torch.float32)
        groups = triton.cdiv(x.shape[3], GROUP)
        polynomial_attention_sum_kernel[(self.segments.count * self.h, self.v_blocks * groups**2)](
            x, u, factor, last, states, self.cu_seqlens, self.segments.owners, self.segments.firsts,
            self.t, self.segments.per_sequence, self.c0, self.c1, self.c2, *x.stride()[:3], *u.stride()[:3],
            BLOCK_T=SUM_TOKENS, BLOCK_V=self.block_v, IS_GRADIENT=is_gradient, num_warps=8, **self.constants,
        )  # fmt: skip
        size = self.r * self.w
        polynomial_attention_scan_kernel[(self.n * self.h * triton.cdiv(size, SCAN_BLOCK),)](
            states, first, after, self.cu_seqlens, self.segments.firsts, self.t, self.segments.per_sequence,
            H=self.h, SIZE=size, BLOCK=SCAN_BLOCK, HAS_FIRST=first is not None, REVERSE=is_gradient,
            PACKED=self.cu_seqlens is not None,
        )  # fmt: skip
        return states

    def out(self, x, z, u, factor, states, y, inverse, *, has_border: bool, reverse: bool) -> None:
        polynomial_attention_out_kernel[(self.blocks.count * self.h, self.v_blocks)](
            x, z, u, factor, states, y, inverse, *self._places(),
            self.c0, self.c1, self.c2, EPSILON, *x.stride()[:3], *z.stride()[:3], *u.stride()[:3],
            BLOCK_T=self.tiles.tokens, BLOCK_K=self.block_k, BLOCK_V=self.block_v,
            READS=self._reads(has_border), REVERSE=reverse, num_warps=self.tiles.num_warps, **self.constants,
        )  # fmt: skip

    def gradient(self, x, z, u, w, factor, last, states, *, has_border: bool, reverse: bool) -> Tensor:
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        polynomial_attention_bwd_kernel[(self.blocks.count * self.h,)](
            x, z, u, w, factor, last, states, dx, *self._places(),
            self.c1, self.c2, *x.stride()[:3], *z.stride()[:3], *u.stride()[:3], *w.stride()[:3],
            BLOCK_T=self.tiles.tokens, BLOCK_K=self.block_k, BLOCK_V=min(self.block_v, self.tiles.gradient_channels),
            READS=self._reads(has_border), REVERSE=reverse, num_warps=self.tiles.num_warps, **self.constants,
        )  # fmt: skip
        return dx

    def step(self, q, k, v, state, after, y, inverse) -> None:
        strides = (x.stride(axis) for x in (q, k, v) for axis in (0, 2))
        shared = ("H", "K", "V", "R", "W", "BLOCK_I", "HAS_ONE", "HAS_LINEAR", "HAS_SQUARE", "NORMALIZE")
        polynomial_attention_step_kernel[(self.b * self.h, self.v_blocks)](
            q, k, v, state, after, y, inverse, self.c0, self.c1, self.c2, EPSILON, *strides,
            BLOCK_V=self.block_v, **{name: self.constants[name] for name in shared},
        )  # fmt: skip

    def walks(self) -> Walks:
        return Walks(
            self.like[0], self.like[1], self.cu_seqlens, (self.c0, self.c1, self.c2), self.coefficients,
            self.normalize, self.r, self.tiles.operand, self.tiles.precision,
        )  # fmt: skip

    def _places(self) -> tuple:
        blocks, segments = self.blocks, self.segments
        places = self.cu_seqlens, blocks.owners, blocks.firsts, segments.firsts
        return *places, self.t, blocks.per_sequence, segments.per_sequence

    def _reads(self, has_border: bool) -> bool:
        """Whether any segment finds a state that is not zero."""
        return has_border or self.t > self.segments.size


def _with_unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    coefficients: list[float], scale: float, normalize: bool,
) -> list[Tensor]:  # fmt: skip
    """[y, state, 1 / normaliser of each token]."""
    (b, t, h, d), width = q.shape, v.shape[3] + normalize
    n = b if cu_seqlens is None else cu_seqlens.shape[0] - 1
    after = q.new_empty(n, h, num_features(d, coefficients), width, dtype=torch.float32)
    inverse = q.new_empty(b, t, h * normalize, dtype=torch.float32)
    return [torch.empty_like(v, memory_format=torch.contiguous_format), after, inverse]


def _forward(q, k, v, state, cu_seqlens, coefficients, scale, normalize):
    y, after, inverse = _allocate(q, k, v, state, cu_seqlens, coefficients, scale, normalize)
    q, k, v, state = _with_unit_stride(q), _with_unit_stride(k), _with_unit_stride(v), _contiguous(state)
    call = _Call(q, k, v, cu_seqlens, coefficients, scale, normalize)
    if state is not None and cu_seqlens is None and call.t == 1:
        call.step(q, k, v, state, after, y, inverse)
        return [y, after, inverse]
    if Walks.serve(q, v, cu_seqlens):
        call.walks().values(q, k, v, inverse, state, y, inverse, after, reverse=False)
        return [y, after, inverse]
    states = call.states(k, v, inverse, inverse, state, after, is_gradient=False)
    call.out(q, k, v, inverse, states, y, inverse, has_border=state is not None, reverse=False)
    return [y, after, inverse]


def _backward(grads, kept, q, k, v, state, cu_seqlens, coefficients, scale, normalize):
    (dy, dafter), (y, after, inverse) = grads, kept
    q, k, v, state = _with_unit_stride(q), _with_unit_stride(k), _with_unit_stride(v), _contiguous(state)
    dy, dafter = torch.zeros_like(y) if dy is None else _with_unit_stride(dy), _contiguous(dafter)
    call = _Call(q, k, v, cu_seqlens, coefficients, scale, normalize)
    dnormaliser = torch.empty_like(inverse)
    dstate, dv = torch.empty_like(after), torch.empty_like(v, memory_format=torch.contiguous_format)
    if Walks.serve(q, v, cu_seqlens):
        walks, dfirst = call.walks(), None if state is None else dstate
        dq = walks.gradient(q, k, dy, v, y, inverse, dnormaliser, state, None, reverse=False)
        dk = walks.gradient(k, q, v, dy, y, inverse, dnormaliser, dafter, dfirst, reverse=True)
        walks.values(k, q, dy, inverse, dafter, dv, inverse, dfirst, reverse=True)
        return dq, dk, dv, dfirst
    if normalize:
        rows = inverse.numel()
        polynomial_attention_bwd_normaliser_kernel[(triton.cdiv(rows, NORMALISER_ROWS),)](
            dy, y, inverse, dnormaliser, rows, call.t, *dy.stride()[:3],
            H=call.h, V=v.shape[3], BLOCK_ROWS=NORMALISER_ROWS, BLOCK_V=triton.next_power_of_2(v.shape[3]),
        )  # fmt: skip
    beside = inverse, dnormaliser
    has_border = state is not None
    states = call.states(k, v, *beside, state, torch.empty_like(after), is_gradient=False)
    dq = call.gradient(q, k, dy, v, *beside, states, has_border=has_border, reverse=False)
    has_border = dafter is not None
    dstates = call.states(q, dy, *beside, dafter, dstate, is_gradient=True)
    dk = call.gradient(k, q, v, dy, *beside, dstates, has_border=has_border, reverse=True)
    call.out(k, q, dy, inverse, dstates, dv, inverse, has_border=has_border, reverse=True)
    return dq, dk, dv, None if state is None else dstate


run = differentiable("polynomial_attention_triton", SHAPES, _allocate, _forward, _backward, num_outputs=2)


def polynomial_attention(q, k, v, state, cu_seqlens, coefficients, scale, normalize) -> tuple[Tensor, Tensor]:
    y, after, _ = run(q, k, v, state, cu_seqlens, coefficients, scale, normalize)
    return y, after
