"""Into how many segments time is cut, for programs enough where there are few heads."""

import triton

from ..._target import fills, multiprocessors

ANCHOR = 4096  # tokens between the places where the gradient of log_decay is known without adding it up
MIN_SEGMENT = 1024  # tokens: shorter ones move too many memories


def segment_of(t: int, programs: int) -> int:
    """Tokens of a segment: all of them if that many programs, one for each block of columns, keep the GPU busy.

    It is a multiple of every chunk, and of ANCHOR or below it.
    """
    segments = min(triton.cdiv(multiprocessors(), programs), t // MIN_SEGMENT)
    if fills(programs) or segments < 2:
        return t
    size = triton.cdiv(t, segments)
    unit = ANCHOR if size > ANCHOR else 128
    return triton.cdiv(size, unit) * unit
