"""Cutting (b, t, h, width) into blocks that fit a cache: some sequences and heads, one segment of time, in chunks."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 64  # tokens whose mutual weights are formed at once
SEGMENT = 512  # tokens of a block; the memory before every segment is kept for the backward pass
BLOCK_ELEMENTS = 1 << 18  # of the widest tensor of a block: 1 MB in float32


class Block(NamedTuple):
    """A slice of the batch and a slice of the heads; together they are the `groups` of a block."""

    batch: slice
    heads: slice


def new_outputs(q: Tensor, v: Tensor, cu_seqlens: Tensor | None, columns: int = 0) -> list[Tensor]:
    """Unwritten y, the memory after the last token, and the memories before each segment but the first (an input).

    A memory has `columns` more columns than v.
    """
    b, t, h, width = q.shape
    n = b if cu_seqlens is None else cu_seqlens.shape[0] - 1
    memory = dict(size=(n, h, width, v.shape[-1] + columns), dtype=torch.promote_types(q.dtype, torch.float32))
    carries = memory | dict(size=((t - 1) // SEGMENT, *memory["size"]))
    return [q.new_empty(b, t, h, v.shape[-1]), q.new_empty(**memory), q.new_empty(**carries)]


def new_weights(q: Tensor) -> Tensor:
    """Unwritten (n, b, h, c, c): a number for each pair of tokens of each chunk of c, to be kept."""
    b, t, h, _ = q.shape
    chunk = chunk_length(t)
    return q.new_empty(-(-t // chunk), b, h, chunk, chunk, dtype=torch.promote_types(q.dtype, torch.float32))


def chunk_length(t: int) -> int:
    """CHUNK, or the next power of two for a shorter t."""
    return CHUNK if t > CHUNK // 2 else 1 << (int(t) - 1).bit_length()


def blocks(b: int, t: int, h: int, key: int, value: int) -> Iterator[Block]:
    """Heads first, then sequences, until the widest tensor of a block (operands, weights, memories) is full."""
    tokens = min(t, SEGMENT)
    per_head = max(tokens * max(key, value, CHUNK), -(-tokens // CHUNK) * key * value)
    num_groups = max(1, BLOCK_ELEMENTS // per_head)
    num_heads = min(h, num_groups)
    num_rows = max(1, num_groups // h)
    for row in range(0, b, num_rows):
        for head in range(0, h, num_heads):
            yield Block(slice(row, min(b, row + num_rows)), slice(head, min(h, head + num_heads)))


class Place(NamedTuple):
    """One segment of time of a block: where tensors (b, t, h, width) are read and written, a chunk at a time.

    The chunks of all groups are N = n g rows of one axis, chunks first. A factor, a number or (N, chunk, 1 or width),
    is multiplied on the way: that costs nothing where the copy is made anyway. What is loaded is computed in `dtype`.
    """

    block: Block
    index: int  # of the segment
    span: slice
    chunk: int
    dtype: torch.dtype

    @property
    def counts(self) -> tuple[int, int]:
        """n chunks, g groups."""
        tokens, rows, heads = (cut.stop - cut.start for cut in (self.span, *self.block))
        return -(-tokens // self.chunk), rows * heads

    @property
    def chunks(self) -> slice:
        """Its chunks among those of the whole time."""
        return slice(self.span.start // self.chunk, -(-self.span.stop // self.chunk))

    def load(self, x: Tensor, factor: float | Tensor = 1.0, column: float | None = None) -> Tensor:
        """(N, chunk, width) copy, zero after its last token; `column` appends a constant one."""
        part = x[self.block.batch, self.span, self.block.heads]
        rows, tokens, heads, width = part.shape
        n = -(-tokens // self.chunk)
        if n * self.chunk != tokens:
            padded = part.new_zeros(rows, n * self.chunk, heads, width)
            padded[:, :tokens] = part
            part = padded
        out = x.new_empty(n * rows * heads, self.chunk, width + (column is not None), dtype=self.dtype)
        if column is not None:
            out[..., width] = column
        filled = out if column is None else out[..., :width]
        _multiply(self._in_chunks(part), factor, out=filled.view(n, rows, heads, self.chunk, width))
        return out

    def store(self, x: Tensor, values: Tensor, factor: float | Tensor = 1.0) -> None:
        """Write (N, chunk, width) back to its place."""
        part = x[self.block.batch, self.span, self.block.heads]
        rows, tokens, heads, width = part.shape
        n = -(-tokens // self.chunk)
        whole = n * self.chunk == tokens
        out = part if whole else x.new_empty(rows, n * self.chunk, heads, width)
        _multiply(values.view(n, rows, heads, self.chunk, width), factor, out=self._in_chunks(out))
        if not whole:
            part.copy_(out[:, :tokens])

    def keep(self, x: Tensor, weights: Tensor) -> None:
        """Write (N, chunk, chunk) to its place among those of `new_weights`."""
        place = self._kept(x)
        place.copy_(weights.view(place.shape))

    def kept(self, x: Tensor) -> Tensor:
        """What was written there, (N, chunk, chunk); not to be changed."""
        return self._kept(x).flatten(0, 2)

    def _kept(self, x: Tensor) -> Tensor:
        return x[self.chunks, self.block.batch, self.block.heads]

    def _in_chunks(self, x: Tensor) -> Tensor:
        """View (rows, n * chunk tokens, heads, width) as (n, rows, heads, chunk, width)."""
        rows, _, heads, width = x.shape
        return x.view(rows, -1, self.chunk, heads, width).permute(1, 0, 3, 2, 4)


def segments(block: Block, t: int, dtype: torch.dtype) -> list[Place]:
    """A block's places in time: SEGMENT tokens each."""
    chunk = chunk_length(t)
    spans = [slice(start, min(t, start + SEGMENT)) for start in range(0, t, SEGMENT)]
    return [Place(block, index, span, chunk, dtype) for index, span in enumerate(spans)]


def _multiply(x: Tensor, factor: float | Tensor, out: Tensor) -> None:
    """Products in the more precise of both dtypes, (n, rows, heads, chunk, width)."""
    if isinstance(factor, Tensor):
        torch.mul(x, factor.view(*x.shape[:-1], -1), out=out)
    elif factor == 1.0:
        out.copy_(x)
    elif x.dtype == out.dtype:
        torch.mul(x, factor, out=out)
    else:  # a number would be multiplied in the dtype of x
        torch.mul(x, x.new_full((1,), factor, dtype=torch.promote_types(x.dtype, out.dtype)), out=out)
