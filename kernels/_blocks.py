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


def segments(t: int) -> list[slice]:
    return [slice(start, min(t, start + SEGMENT)) for start in range(0, t, SEGMENT)]


def chunk_size(t: int) -> int:
    """CHUNK, or the next power of two for a shorter sequence."""
    return min(CHUNK, 1 << (t - 1).bit_length())


def blocks(b: int, t: int, h: int, key: int, value: int) -> Iterator[Block]:
    """Heads first, then sequences, until the widest tensor of a block (operands, weights, memories) is full."""
    tokens = min(t, SEGMENT)
    per_head = max(tokens * max(key, value, CHUNK), -(-tokens // CHUNK) * key * value)
    num_groups = max(1, BLOCK_ELEMENTS // per_head)
    num_heads = min(h, num_groups)
    num_rows = max(1, num_groups // h)
    for row in range(0, b, num_rows):
        for head in range(0, h, num_heads):
            yield Block(slice(row, row + num_rows), slice(head, head + num_heads))


def load(x: Tensor, block: Block, span: slice, chunk: int, dtype: torch.dtype, column: float | None = None) -> Tensor:
    """(n, groups, chunk, width) copy of one block, zero after its last token; `column` appends a constant one."""
    part = x[block.batch, span, block.heads]
    rows, tokens, heads, width = part.shape
    n = -(-tokens // chunk)
    out = x.new_empty(n, rows, heads, chunk, width + (column is not None), dtype=dtype)
    if n * chunk == tokens:
        out[..., :width] = _in_chunks(part, chunk)
    else:
        padded = x.new_zeros(rows, n * chunk, heads, width, dtype=dtype)
        padded[:, :tokens] = part
        out[..., :width] = _in_chunks(padded, chunk)
    if column is not None:
        out[..., width] = column
    return out.flatten(1, 2)


def store(x: Tensor, block: Block, span: slice, values: Tensor) -> None:
    """Write (n, groups, chunk, width) back to its place in (b, t, h, width)."""
    part = x[block.batch, span, block.heads]
    rows, tokens, heads, width = part.shape
    n, _, chunk, _ = values.shape
    values = values.unflatten(1, (rows, heads))
    if n * chunk == tokens:
        _in_chunks(part, chunk).copy_(values)
    else:
        part.copy_(values.permute(1, 0, 3, 2, 4).reshape(rows, n * chunk, heads, width)[:, :tokens])


def _in_chunks(x: Tensor, chunk: int) -> Tensor:
    """View (rows, tokens, heads, width) as (n, rows, heads, chunk, width)."""
    return x.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)
