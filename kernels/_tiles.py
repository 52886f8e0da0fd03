"""What kernels with a memory share: where a program works, what fades, and what a memory does."""

import triton
import triton.language as tl
from torch import Tensor

from ._target import knows_tf32

LOG2_E = tl.constexpr(1.4426950408889634)
FADED = tl.constexpr(-256.0)  # exp of it is zero in float32
GRID = tl.constexpr(256.0)  # multiples of 1 / GRID down to 64 * FADED / ln 2 add up exactly in float32
MAX_STRIDE = 1 << 23  # elements between tokens up to which the offsets inside a tile are below 2^31


@triton.jit
def locate(seqlens_ptr, T, H, segment, blocks):
    """Of this program: block, head, sequence, row of the batch, first token in it, tokens, index of the segment.

    Time is cut into segments; each is walked by programs of its own. One whose segment has no token gets an index for
    which `segment * index` is not below the number of tokens.
    """
    block = tl.program_id(0) % blocks
    head = (tl.program_id(0) // blocks % H).to(tl.int64)
    part = tl.program_id(0) // blocks // H
    segments = tl.cdiv(T, segment)
    sequence = (part // segments).to(tl.int64)
    row, first, length = sequence, sequence * 0, T
    if seqlens_ptr is not None:
        row = sequence * 0
        first = tl.load(seqlens_ptr + sequence).to(tl.int64)
        length = (tl.load(seqlens_ptr + sequence + 1) - first).to(tl.int32)
    return block, head, sequence, row, first, length, part % segments


@triton.jit
def rows(ptr, strides, row, token, head, offs_t):
    """Pointers (BLOCK_T,) to the first channel of consecutive tokens."""
    return ptr + row * strides[0] + token * strides[1] + head * strides[2] + offs_t * strides[1]


@triton.jit
def tile(rows_of, mask_t, offs, mask):
    """(BLOCK_T, channels), zero outside."""
    return tl.load(rows_of[:, None] + offs[None, :], mask=mask_t[:, None] & mask[None, :], other=0.0)


@triton.jit
def fade(log_decay):
    """Sums along a chunk, in log2: of multiples of 1 / GRID, which are exact, and of the small rests.

    Until and with each token, and of all tokens.
    """
    gate = tl.maximum(log_decay.to(tl.float32), FADED) * LOG2_E
    coarse = tl.floor(gate * GRID + 0.5) / GRID
    fine = gate - coarse
    return tl.cumsum(coarse, 0), tl.cumsum(fine, 0), tl.sum(coarse, 0), tl.sum(fine, 0)


@triton.jit
def since_start(coarse, fine):
    return tl.exp2(coarse + fine)


@triton.jit
def until_end(coarse, fine, all_coarse, all_fine):
    return tl.exp2((all_coarse - coarse) + (all_fine - fine))


@triton.jit
def fade_between(coarse, fine, seen):
    """What is left of token j when token i reads it, at [i, j]; 0 where it is not `seen`."""
    distance = (coarse[:, None] - coarse[None, :]) + (fine[:, None] - fine[None, :])
    return tl.exp2(tl.where(seen, distance, float("-inf")))


@triton.jit
def times(x, factor):
    """x * factor in x's dtype."""
    return (x.to(tl.float32) * factor).to(x.dtype)


@triton.jit
def dot(a, b, acc=None):
    """a @ b + acc in a's dtype, accumulated in float32. Three products in tf32 would do for float32, but spill."""
    return tl.dot(a, b.to(a.dtype), acc, input_precision="ieee")


@triton.jit
def read_memory(x, memory, PRECISION: tl.constexpr):
    """x @ memory. A memory may outgrow float16, whose 10 bits of mantissa tf32 has too."""
    if x.dtype == tl.float16:
        return tl.dot(x.to(tl.float32), memory, input_precision=PRECISION)
    return dot(x, memory)


@triton.jit
def carried(
    start_ptr, parts_ptr, totals_ptr, sequence, head, H, K, size, segments, first, count, step: tl.constexpr,
    offs, mask, offs_k, mask_k, BY_CHANNEL: tl.constexpr,
):  # fmt: skip
    """A memory, or a part of it, when `count` segments have passed since the start, the first of them `first`.

    offs, mask: where the part lies in a memory. offs_k: the key channels of its elements, spread as they are.
    """
    memory = tl.zeros(offs.shape, tl.float32)
    if start_ptr is not None:
        memory += tl.load(start_ptr + (sequence * H + head) * size + offs, mask=mask, other=0.0).to(tl.float32)
    if parts_ptr is not None:
        for passed in range(count):
            slot = (sequence * segments + first + step * passed) * H + head
            if totals_ptr is not None:
                if BY_CHANNEL:
                    memory *= tl.load(totals_ptr + slot * K + offs_k, mask=mask_k, other=0.0)
                else:
                    memory *= tl.load(totals_ptr + slot)
            memory += tl.load(parts_ptr + slot * size + offs, mask=mask, other=0.0)
    return memory


def power_of_two(n: int) -> int:
    """Size of a tile's axis that holds n: matrix units multiply at least 16."""
    return max(16, triton.next_power_of_2(n))


def chunk_of(block_t: int, t: int) -> int:
    """Tokens of a chunk: no more than a short sequence has."""
    return min(block_t, power_of_two(t))


def strides_of(*tensors: Tensor | None) -> list[tuple[int, ...]]:
    """Of batch, time and head."""
    return [(0, 0, 0) if x is None else x.stride()[:3] for x in tensors]


def precision() -> str:
    """Of the products of `read_memory` that are made in float32 for float16."""
    return "tf32" if knows_tf32() else "ieee"


def readable(x: Tensor | None) -> Tensor | None:
    """Kernels take any strides but that of the last axis; a copy where they cannot."""
    if x is None or (x.stride(1) < MAX_STRIDE and (x.stride(-1) == 1 or x.shape[-1] == 1)):
        return x
    return x.contiguous()
