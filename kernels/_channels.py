"""What kernels that walk blocks of channels along time share: where a program works, and how time is cut."""

import triton
import triton.language as tl
from torch import Tensor

from ._target import fills, multiprocessors

MIN_SEGMENT = 128  # tokens: shorter ones read their carries longer than their tokens


@triton.jit
def locate(seqlens_ptr, T, D, segment, BLOCK_D: tl.constexpr):
    """Of this program: index of the segment, sequence, row of the batch, its first token there, tokens, channels."""
    blocks = tl.cdiv(D, BLOCK_D)
    offs_d = (tl.program_id(0) % blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = (tl.program_id(0) // blocks).to(tl.int64)
    segments = tl.cdiv(T, segment)
    sequence = part // segments
    row, first, length = sequence, sequence * 0, T
    if seqlens_ptr is not None:
        row = sequence * 0
        first = tl.load(seqlens_ptr + sequence).to(tl.int64)
        length = tl.load(seqlens_ptr + sequence + 1) - first
    return part % segments, sequence, row, first, length, offs_d


def segment_of(t: int, programs: int, multiple: int = 1) -> int:
    """Tokens of a segment: all of them if that many programs, one for each block of channels, keep the GPU busy.

    Else as many segments as give each multiprocessor a program; their length is a multiple of `multiple`.
    """
    segments = min(triton.cdiv(multiprocessors(), programs), t // MIN_SEGMENT)
    if fills(programs) or segments < 2:
        return t
    return triton.cdiv(triton.cdiv(t, segments), multiple) * multiple


def channels_last(x: Tensor) -> Tensor:
    """Neighbouring channels next to each other; the other axes may have any stride."""
    return x if x.stride(-1) == 1 else x.contiguous()
