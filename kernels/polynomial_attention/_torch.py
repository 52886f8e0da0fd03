"""polynomial_attention in PyTorch: the polynomial of the plain product inside a chunk, features only between chunks.

A chunk's weights come from q.k, never from features. What a chunk leaves behind is a sum of features, formed
time-contiguous and one tile at a time, so the widest temporary is a tile for one segment of time. Without a state, a
sequence that is short against the number of features is one chunk: its weights cost less than reading the sum would.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .._autograd import differentiable
from .._packed import over_sequences
from . import EPSILON, SHAPES, num_features
from ._features import Tile, features_of_a_token, tiles_of

CHUNK = 128
ALWAYS_ONE_CHUNK = 512  # tokens
SCORES = 1 << 19  # weights in memory at once: 2 MB


@dataclass(frozen=True)
class _Plan:
    """How the tokens of each sequence are cut: `num_chunks` chunks, of which a segment holds `segment`."""

    chunk: int
    num_chunks: int
    segment: int
    sequences: int  # served by one call

    @property
    def num_segments(self) -> int:
        return -(-self.num_chunks // self.segment)

    def spans(self) -> list[slice]:
        """The chunks of each segment."""
        return [slice(start, start + self.segment) for start in range(0, self.num_chunks, self.segment)]


def _plan(t: int, r: int, has_state: bool) -> _Plan:
    # For each token reading costs r, the weights of a chunk its length / 2. A sum of r rows is kept for each segment,
    # so the chunk grows with r (a power of two up to r / 8) to keep that memory near the size of the inputs.
    longest = max(CHUNK, 1 << max(0, (r // 8).bit_length() - 1))
    num_chunks = 1 if not has_state and t <= max(ALWAYS_ONE_CHUNK, r) else -(-t // longest)
    chunk = -(-t // num_chunks)
    at_once = max(1, SCORES // (min(chunk, CHUNK) * chunk))
    segment = min(num_chunks, at_once)
    return _Plan(chunk, num_chunks, segment, at_once // segment)


class _Weights:
    """The weights of a chunk, c0 + c1 s + c2 s^2 of the plain product s, CHUNK queries at a time against all keys."""

    def __init__(self, polynomial: tuple[float, float, float], chunk: int, like: Tensor):
        c0, c1, self.c2 = polynomial
        rows = min(chunk, CHUNK)
        # The last rows of a triangle: the last columns of any of its rows are the mask of a block that ends there.
        self.mask = like.new_ones(rows, chunk).tril_(chunk - rows)
        self.c0, self.c1 = c0 * self.mask, c1 * self.mask
        self.blocks = [slice(start, min(start + CHUNK, chunk)) for start in range(0, chunk, CHUNK)]

    def of(self, q: Tensor, k: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """s, c1 + c2 s and the weights (n, rows, up to the last row), 0 where the key is in the future."""
        mask, c0, c1 = (self._last(x, rows) for x in (self.mask, self.c0, self.c1))
        s = torch.bmm(q[:, rows], k[:, : rows.stop].mT).mul_(mask)
        slope = torch.add(c1, s, alpha=self.c2)
        return s, slope, torch.addcmul(c0, s, slope)

    @staticmethod
    def _last(x: Tensor, rows: slice) -> Tensor:
        return x[rows.start - rows.stop :, x.shape[1] - rows.stop :]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> None:
        """Write the weighted sums of a chunk's own values to y."""
        for rows in self.blocks:
            weights = self.of(q, k, rows)[2]
            torch.bmm(weights, v[:, : rows.stop], out=y[:, rows])

    def backward(self, q: Tensor, k: Tensor, v: Tensor, dy: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        """Write dq, dk and dv."""
        for rows in reversed(self.blocks):  # the last sees all keys: it writes dk and dv, the others add
            past = slice(rows.stop)
            s, slope, weights = self.of(q, k, rows)
            slope.add_(s, alpha=self.c2)  # c1 + 2 c2 s, the derivative
            ds = torch.bmm(dy[:, rows], v[:, past].mT).mul_(slope)
            torch.bmm(ds, k[:, past], out=dq[:, rows])
            if rows is self.blocks[-1]:
                torch.bmm(ds.mT, q[:, rows], out=dk)
                torch.bmm(weights.mT, dy[:, rows], out=dv)
            else:
                dk[:, past].baddbmm_(ds.mT, q[:, rows])
                dv[:, past].baddbmm_(weights.mT, dy[:, rows])


def _accumulate(sums: Tensor, first: Tensor | None, reverse: bool = False) -> tuple[Tensor, Tensor]:
    """What each chunk of a segment (g, chunks, f, w) finds, `first` and the sums before; and what the last leaves."""
    chunks = sums.shape[1]
    if chunks == 1:
        return (torch.zeros_like(sums), sums[:, 0]) if first is None else (first[:, None], first + sums[:, 0])
    ones = sums.new_ones(chunks, chunks)
    earlier = ones.triu_(1) if reverse else ones.tril_(-1)
    found = torch.matmul(earlier, sums.flatten(2)).unflatten(2, sums.shape[2:])
    found = found if first is None else found.add_(first[:, None])
    last = 0 if reverse else -1
    return found, found[:, last] + sums[:, last]


def _segment_forward(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor | None, chunks: int, tiles: tuple[Tile, ...], carry: list[Tensor | None]
) -> list[Tensor]:
    """Add to y what its queries read from earlier chunks; return the state after the segment."""
    keys, queries = k.mT.contiguous(), None if y is None else q.mT.contiguous()
    after = []
    for tile, before in zip(tiles, carry, strict=True):
        sums = torch.bmm(tile.expand(keys), v).unflatten(0, (-1, chunks))
        found, last = _accumulate(sums, before)
        after.append(last)
        if y is not None:
            y.baddbmm_(tile.expand(queries).mT, (found * tile.weights).flatten(0, 1))
    return after


def _segment_backward(
    parts: list[Tensor],
    dparts: list[Tensor],
    chunks: int,
    tiles: tuple[Tile, ...],
    carry: list[Tensor | None],
    dafter: list[Tensor | None],
    reads: bool,
) -> list[Tensor | None]:
    """Add to dq, dk, dv what flows through the states; return the gradient of the state before the segment."""
    (q, k, v, dy), (dq, dk, dv) = parts, dparts
    queries, keys = q.mT.contiguous(), k.mT.contiguous()
    dqueries, dkeys = torch.zeros_like(queries), torch.zeros_like(keys)
    dbefore = []
    for tile, before, dlast in zip(tiles, carry, dafter, strict=True):
        key_features = tile.expand(keys)
        dsums = dlast[:, None].expand(-1, chunks, -1, -1) if dlast is not None else None
        if reads:
            sums = torch.bmm(key_features, v).unflatten(0, (-1, chunks))
            found = (_accumulate(sums, before)[0] * tile.weights).flatten(0, 1)
            dfound = torch.bmm(tile.expand(queries), dy).mul_(tile.weights).unflatten(0, (-1, chunks))
            dsums, dlast = _accumulate(dfound, dlast, reverse=True)
            tile.pull_back(torch.bmm(found, dy.mT), queries, dqueries)
        dsums = dsums.flatten(0, 1)
        dv.baddbmm_(key_features.mT, dsums)
        tile.pull_back(torch.bmm(dsums, v.mT), keys, dkeys)
        dbefore.append(dlast)
    dq += dqueries.mT
    dk += dkeys.mT
    return dbefore


def _groups(plan: _Plan, b: int, h: int) -> list[tuple[slice, slice]]:
    """(batches, heads) that one call serves: some heads of one row, or all heads of some rows."""
    rows, heads = max(1, plan.sequences // h), min(h, plan.sequences)
    return [(slice(i, i + rows), slice(j, j + heads)) for i in range(0, b, rows) for j in range(0, h, heads)]


def _in_time(x: Tensor, group: tuple[slice, slice]) -> Tensor:
    """The part of (b, t, h, d) that belongs to a group, as (batches, heads, t, d)."""
    batches, heads = group
    return x[batches, :, heads].transpose(1, 2)


def _in_chunks(x: Tensor, plan: _Plan, dtype: torch.dtype, last: float | Tensor | None = None) -> Tensor:
    """(batches, heads, t, d) -> (sequences, chunks, chunk, d), filled up with zeros, which add nothing anywhere.

    `last` (batches, heads, t) or a number becomes one more column.
    """
    b, h, t, d = x.shape
    chunks = x.new_empty(b, h, plan.num_chunks * plan.chunk, d + (last is not None), dtype=dtype)
    chunks[:, :, :t, :d] = x
    if last is not None:
        chunks[:, :, :t, d] = last
    chunks[:, :, t:] = 0.0
    return chunks.view(b * h, plan.num_chunks, plan.chunk, -1)


def _from_chunks(chunks: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_in_chunks`, for a part of the shape of `like`."""
    b, h, t, _ = like.shape
    return chunks.view(b, h, -1, chunks.shape[-1])[:, :, :t]


def _sequences(state: Tensor | None, group: tuple[slice, slice], dtype: torch.dtype) -> Tensor | None:
    """A group's part of a state (n, h, ...) as (sequences, ...)."""
    return None if state is None else state[group].flatten(0, 1).to(dtype)


def _reads(plan: _Plan, segment: int, has_state: bool) -> bool:
    return segment > 0 or plan.segment > 1 or has_state


def _polynomial(coefficients: list[float], scale: float) -> tuple[float, float, float]:
    """Coefficients of the plain product q.k."""
    c0, c1, c2 = coefficients
    return c0, c1 * scale, c2 * scale**2


def _tiles(q: Tensor, coefficients: list[float], scale: float) -> tuple[Tile, ...]:
    compute = torch.promote_types(q.dtype, torch.float32)
    return tiles_of(q.shape[-1], tuple(coefficients), _polynomial(coefficients, scale), compute, q.device)


def _allocate(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, cu_seqlens: Tensor | None,
    coefficients: list[float], scale: float, normalize: bool,
) -> list[Tensor]:  # fmt: skip
    """[y, state, normaliser of each token, state before each segment but the first (in tiles)]."""
    (b, t, h, d), width = q.shape, v.shape[3] + normalize
    n = b if cu_seqlens is None else cu_seqlens.shape[0] - 1
    compute, r = torch.promote_types(q.dtype, torch.float32), num_features(d, coefficients)
    later = _plan(t, r, state is not None).num_segments - 1
    f = sum(tile.num_features for tile in _tiles(q, coefficients, scale)) if later else 0
    shapes = [(n, h, r, width), (b, t, h, int(normalize)), (b, h, later, f, width)]
    return [
        torch.empty_like(v, memory_format=torch.contiguous_format),
        *(q.new_empty(s, dtype=compute) for s in shapes),
    ]


def _forward(q, k, v, state, coefficients, scale, normalize):
    if state is not None and q.shape[1] == 1:
        return _step(q, k, v, state, coefficients, scale, normalize)
    outputs = _allocate(q, k, v, state, None, coefficients, scale, normalize)
    y, last_state, normaliser, carries = outputs
    (b, t, h, _), compute = y.shape, last_state.dtype
    plan, tiles = _plan(t, last_state.shape[2], state is not None), _tiles(q, coefficients, scale)
    weights = _Weights(_polynomial(coefficients, scale), plan.chunk, last_state)
    for group in _groups(plan, b, h):
        inputs = [_in_chunks(_in_time(x, group), plan, compute) for x in (q, k)]
        inputs.append(_in_chunks(_in_time(v, group), plan, compute, 1.0 if normalize else None))
        sums, later_carries = torch.empty_like(inputs[2]), _sequences(carries, group, compute)
        first = _sequences(state, group, compute)
        carry = [tile.load(first) for tile in tiles]
        for segment, span in enumerate(plan.spans()):
            if segment:
                torch.cat(carry, dim=1, out=later_carries[:, segment - 1])
            *parts, y_part = (x[:, span].flatten(0, 1) for x in (*inputs, sums))
            weights.forward(*parts, y_part)
            reader = y_part if _reads(plan, segment, state is not None) else None
            carry = _segment_forward(*parts, reader, sums[:, span].shape[1], tiles, carry)
        for tile, last in zip(tiles, carry, strict=True):
            tile.store(last, _sequences(last_state, group, compute))
        y_group = _in_time(y, group)
        sums = _from_chunks(sums, y_group)
        if normalize:
            divisor = _in_time(normaliser, group)
            divisor.copy_(sums[..., -1:] + EPSILON)
            sums = sums[..., :-1] / divisor
        y_group.copy_(sums)
    return outputs


def _backward(grads, kept, q, k, v, state, coefficients, scale, normalize):
    (dy, dlast_state), (y, last_state, normaliser, carries) = grads, kept
    (b, t, h, _), compute = y.shape, last_state.dtype
    plan, tiles = _plan(t, last_state.shape[2], state is not None), _tiles(q, coefficients, scale)
    weights = _Weights(_polynomial(coefficients, scale), plan.chunk, last_state)
    results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    dstate = None if state is None else torch.zeros_like(state, dtype=compute, memory_format=torch.contiguous_format)
    for group in _groups(plan, b, h):
        inputs = [_in_chunks(_in_time(x, group), plan, compute) for x in (q, k)]
        inputs.append(_in_chunks(_in_time(v, group), plan, compute, 1.0 if normalize else None))
        y_group = _in_time(y, group)
        dsums = torch.zeros_like(y_group, dtype=compute) if dy is None else _in_time(dy, group).to(compute)
        dnormaliser = None
        if normalize:
            dsums = dsums / _in_time(normaliser, group)
            dnormaliser = -(dsums * y_group).sum(-1)
        inputs.append(_in_chunks(dsums, plan, compute, dnormaliser))
        outputs = [torch.empty_like(x) for x in inputs[:3]]
        first, dlast = _sequences(state, group, compute), _sequences(dlast_state, group, compute)
        later_carries = _sequences(carries, group, compute)
        dcarry = [tile.load_gradient(dlast) for tile in tiles]
        for segment, span in reversed(list(enumerate(plan.spans()))):
            parts, dparts = ([x[:, span].flatten(0, 1) for x in xs] for xs in (inputs, outputs))
            weights.backward(*parts, *dparts)
            reads = _reads(plan, segment, state is not None)
            if not reads and dcarry[0] is None:
                continue  # one chunk, and nothing before or after it
            if segment:
                carry = later_carries[:, segment - 1].split([tile.num_features for tile in tiles], dim=1)
            else:
                carry = [tile.load(first) for tile in tiles]
            dcarry = _segment_backward(parts, dparts, inputs[0][:, span].shape[1], tiles, carry, dcarry, reads)
        if state is not None:
            for tile, dfirst in zip(tiles, dcarry, strict=True):
                tile.store_gradient(dfirst, _sequences(dstate, group, compute))
        for result, dx in zip(results, outputs, strict=True):
            place = _in_time(result, group)
            place.copy_(_from_chunks(dx, place)[..., : place.shape[-1]])
    return *results, dstate


def _step(q, k, v, state, coefficients, scale, normalize):
    """One token, as decoding has it: the state is read and written once."""
    compute = torch.promote_types(q.dtype, torch.float32)
    b, _, h, _ = q.shape
    features, weights = features_of_a_token(torch.cat([q, k], dim=1).to(compute), coefficients, scale)
    values = (F.pad(v, (0, 1), value=1.0) if normalize else v).to(compute).transpose(1, 2)  # (b, h, 1, w)
    after = torch.addcmul(state.to(compute), features[:, 1, :, :, None], values)
    sums = torch.matmul((features[:, 0] * weights)[:, :, None], after).transpose(1, 2)  # (b, 1, h, w)
    if normalize:
        normaliser = sums[..., -1:] + EPSILON
        y = (sums[..., :-1] / normaliser).to(v.dtype)
    else:
        normaliser, y = sums.new_empty(b, 1, h, 0), sums.to(v.dtype)
    return [y, after, normaliser, sums.new_empty(b, h, 0, 0, sums.shape[-1])]


run = differentiable(
    "polynomial_attention_torch", SHAPES, *over_sequences(SHAPES, _allocate, _forward, _backward), num_outputs=2
)


def polynomial_attention(q, k, v, state, cu_seqlens, coefficients, scale, normalize) -> tuple[Tensor, Tensor]:
    y, state, *_ = run(q, k, v, state, cu_seqlens, coefficients, scale, normalize)
    return y, state
