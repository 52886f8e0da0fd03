"""How the weight between two tokens fades: not at all, by one factor a head, or by one a key channel.

A block is (n, g, c, k): n chunks of g heads of sequences, c tokens each; N = n g. Before anything is multiplied every
operand is faded to one reference a chunk, where its memory is kept too, in one of two ways:

    MildDecay    nothing in the block fades far within a chunk, so all of it is measured from the chunk's middle token:
                 exp(+-) of the distance is exact, and what follows is attention without decay
    SteepDecay   reads are measured from the start of the chunk and writes to its end, where exponents are <= 0
                 whatever the decay; weights inside the chunk have ways of their own

Each has these members; without decay (NoDecay) factors are 1 and operands stay as they are:

    reader, writer     the factor with which an operand that reads the memory, or writes into it, is loaded and its
                       gradient is stored: 1 where decay is steep, whose operands are needed without it, too
    reading, writing   such an operand as `Faded`
    weights            of a reader on the writers until it in the chunk, (N, c, c), lower triangular
    enter              write what the first chunk reads of a memory (g, k, v) to `out`, which may be the memory
    land               turn what each chunk writes (n, g, k, v) into what the next one reads, in place. The gradients
                       of both go the same way
    landing            an operand that writes, as the next chunk reads what it writes
    total              (n, g, 1 or k, 1) factor of a memory taken to the next chunk; totals: that of each of n chunks
    as_read, as_written    an operand, or its gradient, that lacks `reader` or `writer`, in place
    at_entry           an operand (N, k) that reads the memory before the chunk has faded at all
    backward           from gradients of what is faded to those of what was loaded and of log_decay

The gradient of log_decay_t sums reader_i writer_j dweight_ij over the pairs that straddle t, j < t <= i. They are
counted a chunk at a time, and where it is steep so that no difference of large sums is taken: zero where all has faded.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ._blocks import Place

# With the reference in the middle of a run of tokens, exp(+-SAFE_HALF_RANGE) loses a few units in the last place.
SAFE_HALF_RANGE = 16.0
FADED = -1000.0  # exp of it is zero in every dtype
GRID = 256.0  # multiples of 1 / GRID down to 64 * FADED add up exactly even in float32


class Faded(NamedTuple):
    """An operand (N, c, k) as it was loaded, and what is left of it at the reference of its chunk."""

    plain: Tensor
    faded: Tensor


Operands = Sequence[tuple[Faded, Tensor]]  # readers or writers, each with the gradient of `faded`
Pairs = tuple[Tensor, Tensor]  # weights of a reader on a writer, and their gradient, zero where the weights are


class NoDecay:
    reader = writer = 1.0
    total = None

    def reading(self, x: Tensor) -> Faded:
        return Faded(x, x)

    def writing(self, x: Tensor) -> Faded:
        return Faded(x, x)

    def weights(self, reader: Faded, writer: Faded, diagonal: int = 0) -> Tensor:
        return torch.bmm(reader.faded, writer.faded.mT).tril_(diagonal)

    def enter(self, memory: Tensor, out: Tensor) -> Tensor:
        return out if out is memory else out.copy_(memory)

    def land(self, written: Tensor) -> Tensor:
        return written

    def landing(self, writing: Tensor) -> Tensor:
        return writing

    def totals(self, n: int) -> Sequence[Tensor | None]:
        return [None] * n if self.total is None else self.total.unbind()

    def as_read(self, x: Tensor) -> Tensor:
        return x

    def as_written(self, x: Tensor) -> Tensor:
        return x

    def at_entry(self, x: Tensor) -> Tensor:
        return x

    def backward(
        self, readers: Operands, writers: Operands, pairs: list[list[Pairs]], memories: Tensor, dmemories: Tensor
    ) -> Tensor | None:
        """Turn gradients of faded operands into those of loaded ones, in place; return log_decay's, (N, c, width).

        Args:
            readers, writers: operands, each with the gradient that reaches `faded` through the memory.
            pairs: by reader and writer.
            memories: (n + 1, g, k, v) as each chunk reads them, and after the last.
            dmemories: likewise, but those of memories after a chunk have landed. All may be used up.
        """
        for (reader, dreader), row in zip(readers, pairs, strict=True):
            for (writer, dwriter), (_, dweights) in zip(writers, row, strict=True):
                dreader.baddbmm_(dweights, writer.faded)
                dwriter.baddbmm_(dweights.mT, reader.faded)


class MildDecay(NoDecay):
    """All tokens of a chunk, and its memory, are measured from its middle token."""

    def __init__(self, distances: Tensor):  # (n, g, c + 2, 1 or k), those of `_around_middle`
        factors = distances.exp()
        self.reader = factors[:, :, :-2].flatten(0, 1)
        self.writer = self.reader.reciprocal()
        self.to_middle, self.total = factors[:, :, -2, :, None], factors[:, :, -1, :, None]
        self.total[:-1].mul_(self.to_middle[1:])

    def enter(self, memory: Tensor, out: Tensor) -> Tensor:
        return torch.mul(memory, self.to_middle[0], out=out)

    def land(self, written: Tensor) -> Tensor:
        return written.mul_(self.total)

    def landing(self, writing: Tensor) -> Tensor:
        return writing * self.total.flatten(0, 1).mT

    def as_read(self, x: Tensor) -> Tensor:
        return x.mul_(self.reader)

    def as_written(self, x: Tensor) -> Tensor:
        return x.mul_(self.writer)

    def at_entry(self, x: Tensor) -> Tensor:
        return x / self.to_middle.flatten(0, 1).squeeze(-1)

    def backward(
        self, readers: Operands, writers: Operands, pairs: list[list[Pairs]], memories: Tensor, dmemories: Tensor
    ) -> Tensor:
        super().backward(readers, writers, pairs, memories, dmemories)
        flow = _products(readers)  # what is read until t, less what later tokens read of t
        for writer, dwriter in writers:
            flow.addcmul_(writer.faded, dwriter, value=-1)
        # What is read of this chunk by later ones; `total` is in the memory and in its gradient, and counts once.
        shared = (-2, -1) if self.reader.shape[-1] == 1 else -1
        leaving = memories[1:].mul_(dmemories[1:]).sum(shared).view(self.total.shape[:3]).div_(self.total[..., 0])
        return sums_from(_shared(flow, self.reader)).add_(leaving.flatten(0, 1)[:, None])


def pass_on(before: Tensor, after: Tensor, total: Tensor | None) -> Tensor:
    """Add to one memory what is left of the one before it: all of it, or `total`."""
    return after.add_(before) if total is None else after.addcmul_(before, total)


def gradients_of_memories(dlast: Tensor, reading: Tensor, dy: Tensor) -> Tensor:
    """(n + 1, g, k, v): that of the last memory, (g, k, v), and of those before it what each chunk's readers give."""
    n = len(dy) // len(dlast)
    dmemories = dlast.new_empty(n + 1, *dlast.shape)
    dmemories[n] = dlast
    torch.bmm(reading.mT, dy, out=dmemories[:n].flatten(0, 1))
    return dmemories


def _products(operands: Operands) -> Tensor:
    """Sum of each faded operand times its gradient; uses up what is faded."""
    (first, dfirst), *others = operands
    total = first.faded.mul_(dfirst)
    for x, dx in others:
        total.addcmul_(x.faded, dx)
    return total


class SteepDecay(NoDecay):
    """Reads are measured from the start of their chunk, writes to its end: `read`, `write` (N, c, 1 or k), `total`."""

    def reading(self, x: Tensor) -> Faded:
        return Faded(x, x * self.read)

    def writing(self, x: Tensor) -> Faded:
        return Faded(x, x * self.write)

    def backward(
        self, readers: Operands, writers: Operands, pairs: list[list[Pairs]], memories: Tensor, dmemories: Tensor
    ) -> Tensor:
        flow, to_after = (_shared(_products(operands), self.read) for operands in (readers, writers))
        for operands, factor in ((readers, self.read), (writers, self.write)):
            for _, dx in operands:
                dx *= factor
        for (reader, dreader), row in zip(readers, pairs, strict=True):
            for (writer, dwriter), between in zip(writers, row, strict=True):
                flow += self._through_weights(reader.plain, writer.plain, between, dreader, dwriter)
        dlog_decay = sums_from(flow).add_(sums_before(to_after))
        across = memories[:-1].mul_(dmemories[1:]).sum(-1, keepdim=True).mul_(self.total).flatten(0, 1)
        return dlog_decay.add_(_shared(across.mT, self.read))


class SteepHeadDecay(SteepDecay):
    """One factor a head and token; those of all pairs, from differences of sums of log_decay over the chunk."""

    def __init__(self, log_decay: Tensor):  # (n, g, c, 1)
        dtype = log_decay.dtype
        until = _coarse_and_fine(log_decay.squeeze(-1)).cumsum(-1)  # (2, n, g, c)
        total = until[..., -1:]
        coarse, fine = until.to(dtype).flatten(1, 2)  # (N, c)
        log_factors = coarse[:, :, None] - coarse[:, None, :]
        log_factors += fine[:, :, None]
        log_factors -= fine[:, None, :]
        self.factors = log_factors.exp_().tril_()  # (N, c, c)
        self.read = until.sum(0).exp_().to(dtype).view(-1, until.shape[-1], 1)
        self.write = (total - until).sum(0).exp_().to(dtype).view_as(self.read)
        self.total = total.sum(0).exp_().to(dtype)[..., None]

    def weights(self, reader: Faded, writer: Faded, diagonal: int = 0) -> Tensor:
        weights = torch.bmm(reader.plain, writer.plain.mT).mul_(self.factors)
        return weights if diagonal == 0 else weights.tril_(diagonal)

    def _through_weights(self, q: Tensor, k: Tensor, pairs: Pairs, dq: Tensor, dk: Tensor) -> Tensor:
        """Add to dq and dk; what a token reads of earlier ones less what later ones read of it, (N, c, 1)."""
        weights, dweights = pairs
        moved = weights.mul_(dweights).tril_(-1)
        dweights.mul_(self.factors)
        dq.baddbmm_(dweights, k)
        dk.baddbmm_(dweights.mT, q)
        return (moved.sum(2) - moved.sum(1))[..., None]


class SteepChannelDecay(SteepDecay):
    """One factor a key channel and token: weights factor into exp(c_i - r) and exp(r - c_j), r a reference between.

    A chunk is halved again and again. Between the two halves the reference is their border, where both exponents are
    <= 0 whatever the decay. Halving stops at `leaf` tokens, whose range is so small that a reference in their middle
    is exact too: for extreme decays that is a single token.
    """

    def __init__(self, log_decay: Tensor):  # (n, g, c, k)
        chunks, c = log_decay.shape[:2], log_decay.shape[2]
        log_decay = log_decay.flatten(0, 1)
        self.leaf = leaf = _leaf_size(log_decay)
        from_middle, to_middle, to_end = _leaf_factors(log_decay, leaf)
        self.leaf_query = from_middle.view_as(log_decay)
        self.leaf_key = self.leaf_query.reciprocal()
        self.read = (from_middle * to_middle).view_as(log_decay)
        self.write = (self.leaf_key.view_as(from_middle) * to_end).view_as(log_decay)
        self.levels = []  # (half, factor of its queries in the second half, factor of its keys in the first half)
        half = leaf
        while half < c:
            self.levels.append((half, _second(self.read, half).clone(), _first(self.write, half).clone()))
            runs = log_decay.unflatten(1, (-1, 2, half)).sum(3, keepdim=True).exp_()  # (N, c / 2 half, 2, 1, k)
            _second(self.read, half).unflatten(0, runs.shape[:2]).mul_(runs[:, :, 0])
            _first(self.write, half).unflatten(0, runs.shape[:2]).mul_(runs[:, :, 1])
            half *= 2
        self.total = self.read[:, -1, :, None].unflatten(0, chunks)

    def weights(self, reader: Faded, writer: Faded, diagonal: int = 0) -> Tensor:
        q, k = reader.plain, writer.plain
        num, c, _ = q.shape
        queries, keys = self._leaves(q, k)
        weights = q.new_zeros(num, c, c)
        leaves = torch.bmm(queries, keys.mT).tril_(diagonal)
        diagonal_blocks(weights, self.leaf).copy_(leaves.unflatten(0, (num, -1)))
        for half, query, key in self.levels:
            late, early = _second(q, half) * query, _first(k, half) * key
            below = diagonal_blocks(weights, 2 * half)[:, :, half:, :half]
            below.copy_(torch.bmm(late, early.mT).unflatten(0, (num, -1)))
        return weights

    def _through_weights(self, q: Tensor, k: Tensor, pairs: Pairs, dq: Tensor, dk: Tensor) -> Tensor:
        """As that of one factor a head, (N, c, k)."""
        _, dweights = pairs
        own = dweights.diagonal(dim1=1, dim2=2)[..., None]  # a token's own pair does not fade
        dq.addcmul_(own, k)
        dk.addcmul_(own, q)
        near = diagonal_blocks(dweights, self.leaf).reshape(-1, self.leaf, self.leaf).tril_(-1)
        queries, keys = self._leaves(q, k)
        dq_chunk = torch.bmm(near, keys).view_as(q).mul_(self.leaf_query)
        dk_chunk = torch.bmm(near.mT, queries).view_as(k).mul_(self.leaf_key)
        for half, query, key in self.levels:
            late, early = _second(q, half) * query, _first(k, half) * key
            far = diagonal_blocks(dweights, 2 * half)[:, :, half:, :half].flatten(0, 1)
            _second(dq_chunk, half).addcmul_(torch.bmm(far, early), query)
            _first(dk_chunk, half).addcmul_(torch.bmm(far.mT, late), key)
        dq += dq_chunk
        dk += dk_chunk
        return dq_chunk.mul_(q).sub_(dk_chunk.mul_(k))

    def _leaves(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return _runs(q * self.leaf_query, self.leaf), _runs(k * self.leaf_key, self.leaf)


def _coarse_and_fine(log_decay: Tensor) -> Tensor:
    """Split into multiples of 1 / GRID, whose sums are exact, and small rests: differences of long sums stay exact."""
    log_decay = log_decay.double().clamp_min(FADED)
    coarse = (log_decay * GRID).round_().div_(GRID)
    return torch.stack([coarse, log_decay - coarse])


def _leaf_size(log_decay: Tensor) -> int:
    """Longest run of tokens, a power of two, in which no channel fades beyond the safe range; (N, c, k)."""
    leaf = log_decay.shape[1]
    while leaf > 1 and log_decay.unflatten(1, (-1, leaf)).sum(2).min() < -2 * SAFE_HALF_RANGE:
        leaf //= 2
    return leaf


def _leaf_factors(log_decay: Tensor, leaf: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token from the middle of its leaf, and of each leaf: from start to middle, from middle to end.

    log_decay (N, c, k); all as (N, c / leaf, leaf or 1, k).
    """
    runs = log_decay.unflatten(1, (-1, leaf))
    middle = (leaf - 1) // 2
    to_middle = runs[:, :, : middle + 1].sum(2, keepdim=True).exp_()
    to_end = runs[:, :, middle + 1 :].sum(2, keepdim=True).exp_()
    return _from_middle(runs), to_middle, to_end


def _from_middle(log_decay: Tensor) -> Tensor:
    """Factor of each row from the middle one, 1 or more before it; log_decay (..., rows, width)."""
    return torch.matmul(_around_middle(log_decay.shape[-2], log_decay.dtype, log_decay.device)[:-2], log_decay).exp_()


def sums_from(x: Tensor) -> Tensor:
    """Sums over this and all later tokens of a chunk; x (N, c, width)."""
    return _over_tokens(_ones_below(x.shape[1], 0, x.dtype, x.device).T, x)


def sums_before(x: Tensor) -> Tensor:
    """Sums over all earlier tokens of a chunk, without this one."""
    return _over_tokens(_ones_below(x.shape[1], -1, x.dtype, x.device), x)


def _over_tokens(weights: Tensor, x: Tensor) -> Tensor:
    """Weighted sums over the tokens of each chunk; weights (rows, c), x (N, c, width) -> (N, rows, width)."""
    if x.shape[-1] == 1:  # one product, where a batch of products with a vector takes six times as long
        return torch.mm(x.squeeze(-1), weights.T)[..., None]
    return torch.matmul(weights, x)


@lru_cache(maxsize=64)
def _ones_below(n: int, diagonal: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(n, n, dtype=dtype, device=device).tril_(diagonal)


@lru_cache(maxsize=64)
def _around_middle(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n + 2, n): sums of a run of n, from its middle to each; and in the last rows up to the middle, and after it."""
    until = _ones_below(n, 0, dtype, device)
    middle = (n - 1) // 2
    return torch.cat([until - until[middle], until[middle, None], 1 - until[middle, None]])


def _shared(x: Tensor, factor: Tensor) -> Tensor:
    """Summed over the channels that share a factor."""
    return x if factor.shape[-1] == x.shape[-1] else x.sum(-1, keepdim=True)


def _runs(x: Tensor, length: int) -> Tensor:
    """(num, c, width) -> (num c / length, length, width)."""
    return x.reshape(-1, length, x.shape[-1])


def _first(x: Tensor, half: int) -> Tensor:
    return x.unflatten(1, (-1, 2, half))[:, :, 0].flatten(0, 1)


def _second(x: Tensor, half: int) -> Tensor:
    return x.unflatten(1, (-1, 2, half))[:, :, 1].flatten(0, 1)


def diagonal_blocks(pairs: Tensor, size: int) -> Tensor:
    """View (num, c / size, size, size) of the square blocks on the diagonal of (num, c, c)."""
    num, c, _ = pairs.shape
    return pairs.as_strided((num, c // size, size, size), (c * c, (c + 1) * size, c, 1), pairs.storage_offset())


Decay = NoDecay | MildDecay | SteepHeadDecay | SteepChannelDecay


def load_decays(log_decay: Tensor | None, places: Sequence[Place]) -> Iterator[Decay]:
    """Of log_decay, None, (b, t, h) or (b, t, h, k), at all places of a block, in the order in which they come.

    One factor a head takes so little room that it is read for all of them at once.
    """
    if log_decay is None:
        yield from [NoDecay()] * len(places)
        return
    log_decay = log_decay if log_decay.ndim == 4 else log_decay[..., None]
    weights = _around_middle(places[0].chunk, places[0].dtype, log_decay.device)

    def measured(place: Place) -> tuple[Tensor, Tensor, list[float]]:
        """What is loaded, its distances and the longest distance across each chunk."""
        loaded = place.load(log_decay)
        distances = _over_tokens(weights, loaded)
        across = (distances[:, -2] + distances[:, -1]).view(place.counts[0], -1).amin(1).tolist()
        return loaded.unflatten(0, place.counts), distances.unflatten(0, place.counts), across

    if log_decay.shape[-1] > 1:
        yield from (_decay(*measured(place)) for place in places)
        return
    whole = measured(places[0]._replace(span=slice(0, log_decay.shape[1])))
    yield from (_decay(*(of_chunks[place.chunks] for of_chunks in whole)) for place in places)


def _decay(log_decay: Tensor, distances: Tensor, across: list[float]) -> Decay:
    """Of one place, (n, g, c, 1 or k); distances as those of `_around_middle`, (n, g, c + 2, 1 or k)."""
    if not min(across) < -2 * SAFE_HALF_RANGE:
        return MildDecay(distances)
    return SteepHeadDecay(log_decay) if log_decay.shape[-1] == 1 else SteepChannelDecay(log_decay)
