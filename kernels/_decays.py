"""How the weight between two tokens fades: not at all, by one factor a head, or by one a key channel.

A block is (n, g, c, width): n chunks of g heads of sequences, c tokens each; N = n g. Each class knows:

    read, write      factors (N, c, 1 or k) of q, which sees the memory before its chunk, and of k in that after it
    total            (n, g, 1 or k, 1) factor of a memory taken across a chunk
    scores           weights between the tokens of a chunk, (N, c, c), lower triangular
    scores_backward  adds to dq and dk, returns `flow` for the gradient of log_decay; uses up its scores and dscores

Without decay the factors are None.

The gradient of log_decay_t sums q_i k_j v_j dy_i over the pairs that straddle t, j < t <= i. Pairs inside the chunk
are counted by `flow` (what token i reads from before minus what it gives to later ones, without its own pair), so
that it is zero where everything has faded: no difference of large sums is ever taken across chunks.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ._blocks import Block, load

# With the reference in the middle of a run of tokens, exp(+-SAFE_HALF_RANGE) loses a few units in the last place.
SAFE_HALF_RANGE = 16.0
FADED = -1000.0  # exp of it is zero in every dtype
GRID = 256.0  # multiples of 1 / GRID down to 64 * FADED add up exactly even in float32


@lru_cache(maxsize=64)
def _ones_below(n: int, diagonal: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(n, n, dtype=dtype, device=device).tril_(diagonal)


def sums_from(x: Tensor) -> Tensor:
    """Sums over this and all later tokens of a chunk; x (N, c, width)."""
    return torch.matmul(_ones_below(x.shape[1], 0, x.dtype, x.device).T, x)


def sums_before(x: Tensor) -> Tensor:
    """Sums over all earlier tokens of a chunk, without this one."""
    return torch.matmul(_ones_below(x.shape[1], -1, x.dtype, x.device), x)


def _coarse_and_fine(log_decay: Tensor) -> Tensor:
    """Split into multiples of 1 / GRID, whose sums are exact, and small rests: differences of long sums stay exact."""
    log_decay = log_decay.double().clamp_min(FADED)
    coarse = (log_decay * GRID).round_().div_(GRID)
    return torch.stack([coarse, log_decay - coarse])


class NoDecay:
    read = write = total = None

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.bmm(q, k.mT).tril_()

    def scores_backward(self, q: Tensor, k: Tensor, scores: Tensor, dscores: Tensor, dq: Tensor, dk: Tensor) -> None:
        dscores.tril_()
        dq.baddbmm_(dscores, k)
        dk.baddbmm_(dscores.mT, q)


class HeadDecay:
    """One factor a head and token, from differences of sums of log_decay over the chunk."""

    def __init__(self, log_decay: Tensor):  # (n, g, c, 1)
        dtype = log_decay.dtype
        until = _coarse_and_fine(log_decay.squeeze(-1)).cumsum(-1)  # (2, n, g, c)
        total = until[..., -1:]
        coarse, fine = until.to(dtype).flatten(1, 2)  # (N, c)
        log_weight = coarse[:, :, None] - coarse[:, None, :]
        log_weight += fine[:, :, None]
        log_weight -= fine[:, None, :]
        self.weight = log_weight.exp_().tril_()  # (N, c, c)
        self.read = until.sum(0).exp_().to(dtype).view(-1, until.shape[-1], 1)
        self.write = (total - until).sum(0).exp_().to(dtype).view_as(self.read)
        self.total = total.sum(0).exp_().to(dtype)[..., None]  # (n, g, 1, 1)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.bmm(q, k.mT).mul_(self.weight)

    def scores_backward(self, q: Tensor, k: Tensor, scores: Tensor, dscores: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
        pairs = scores.mul_(dscores).tril_(-1)
        dscores.mul_(self.weight)
        dq.baddbmm_(dscores, k)
        dk.baddbmm_(dscores.mT, q)
        return (pairs.sum(2) - pairs.sum(1))[..., None]  # (N, c, 1)

    def reduce(self, x: Tensor) -> Tensor:
        """Sum over the channels that share a factor."""
        return x.sum(-1, keepdim=True)

    def across(self, memories: Tensor) -> Tensor:
        """Pairs that straddle a whole chunk, (N, 1, 1), from the memories before it times their gradients after it."""
        return (memories.sum((-2, -1), keepdim=True) * self.total).flatten(0, 1)


class ChannelDecay:
    """One factor a key channel and token: weights factor into exp(c_i - r) and exp(r - c_j), r a reference between.

    A chunk is halved again and again. Between the two halves the reference is their border, where both exponents are
    <= 0 whatever the decay. Halving stops at `leaf` tokens, whose range is so small that a reference in their middle
    is exact too: for mild decays that is the whole chunk, for extreme ones a single token.
    """

    def __init__(self, log_decay: Tensor):  # (n, g, c, k)
        chunks, c = log_decay.shape[:2], log_decay.shape[2]
        log_decay = log_decay.flatten(0, 1)
        self.leaf = _leaf_size(log_decay)
        from_middle, to_middle, to_end = _leaf_factors(log_decay, self.leaf)
        self.leaf_query = from_middle.view_as(log_decay)
        self.leaf_key = self.leaf_query.reciprocal()
        self.read = (from_middle * to_middle).view_as(log_decay)
        self.write = (self.leaf_key.view_as(from_middle) * to_end).view_as(log_decay)
        self.levels = []  # (half, factor of its queries in the second half, factor of its keys in the first half)
        half = self.leaf
        while half < c:
            self.levels.append((half, _second(self.read, half).clone(), _first(self.write, half).clone()))
            runs = log_decay.unflatten(1, (-1, 2, half)).sum(3, keepdim=True).exp_()  # (N, c / 2 half, 2, 1, k)
            _second(self.read, half).unflatten(0, runs.shape[:2]).mul_(runs[:, :, 0])
            _first(self.write, half).unflatten(0, runs.shape[:2]).mul_(runs[:, :, 1])
            half *= 2
        self.total = self.read[:, -1, :, None].unflatten(0, chunks)  # (n, g, k, 1)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        queries, keys = self._leaves(q, k)
        leaf = torch.bmm(queries, keys.mT).tril_()
        num, c, _ = q.shape
        if self.leaf == c:
            return leaf
        scores = q.new_zeros(num, c, c)
        _diagonal_blocks(scores, self.leaf).copy_(leaf.unflatten(0, (num, -1)))
        for half, query, key in self.levels:
            late, early = _second(q, half) * query, _first(k, half) * key
            below = _diagonal_blocks(scores, 2 * half)[:, :, half:, :half]
            below.copy_(torch.bmm(late, early.mT).unflatten(0, (num, -1)))
        return scores

    def scores_backward(self, q: Tensor, k: Tensor, scores: Tensor, dscores: Tensor, dq: Tensor, dk: Tensor) -> Tensor:
        own = dscores.diagonal(dim1=1, dim2=2)[..., None]  # a token's own pair does not fade
        dq.addcmul_(own, k)
        dk.addcmul_(own, q)
        pairs = _diagonal_blocks(dscores, self.leaf).reshape(-1, self.leaf, self.leaf).tril_(-1)
        queries, keys = self._leaves(q, k)
        dq_chunk = torch.bmm(pairs, keys).view_as(q).mul_(self.leaf_query)
        dk_chunk = torch.bmm(pairs.mT, queries).view_as(k).mul_(self.leaf_key)
        for half, query, key in self.levels:
            late, early = _second(q, half) * query, _first(k, half) * key
            pairs = _diagonal_blocks(dscores, 2 * half)[:, :, half:, :half].flatten(0, 1)
            _second(dq_chunk, half).addcmul_(torch.bmm(pairs, early), query)
            _first(dk_chunk, half).addcmul_(torch.bmm(pairs.mT, late), key)
        dq += dq_chunk
        dk += dk_chunk
        return dq_chunk.mul_(q).sub_(dk_chunk.mul_(k))  # (N, c, k)

    def _leaves(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return _runs(q * self.leaf_query, self.leaf), _runs(k * self.leaf_key, self.leaf)

    def reduce(self, x: Tensor) -> Tensor:
        return x

    def across(self, memories: Tensor) -> Tensor:
        return (memories.sum(-1, keepdim=True) * self.total).flatten(0, 1).mT  # (N, 1, k)


def _leaf_size(log_decay: Tensor) -> int:
    """Longest run of tokens, a power of two, in which no channel fades beyond the safe range."""
    leaf = log_decay.shape[1]
    while leaf > 1 and log_decay.unflatten(1, (-1, leaf)).sum(2).min() < -2 * SAFE_HALF_RANGE:
        leaf //= 2
    return leaf


def _leaf_factors(log_decay: Tensor, leaf: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token from the middle of its leaf, and of each leaf: from start to middle, from middle to end.

    All as (N, c / leaf, leaf or 1, k).
    """
    sums = _ones_below(leaf, 0, log_decay.dtype, log_decay.device)
    middle = (leaf - 1) // 2
    runs = log_decay.unflatten(1, (-1, leaf))  # (N, c / leaf, leaf, k)
    from_middle = torch.matmul(sums - sums[middle], runs).exp_()
    to_middle = runs[:, :, : middle + 1].sum(2, keepdim=True).exp_()
    to_end = runs[:, :, middle + 1 :].sum(2, keepdim=True).exp_()
    return from_middle, to_middle, to_end


def _runs(x: Tensor, length: int) -> Tensor:
    """(num, c, width) -> (num c / length, length, width)."""
    return x.reshape(-1, length, x.shape[-1])


def _first(x: Tensor, half: int) -> Tensor:
    return x.unflatten(1, (-1, 2, half))[:, :, 0].flatten(0, 1)


def _second(x: Tensor, half: int) -> Tensor:
    return x.unflatten(1, (-1, 2, half))[:, :, 1].flatten(0, 1)


def _diagonal_blocks(pairs: Tensor, size: int) -> Tensor:
    """View (num, c / size, size, size) of the square blocks on the diagonal of (num, c, c)."""
    num, c, _ = pairs.shape
    return pairs.as_strided((num, c // size, size, size), (c * c, (c + 1) * size, c, 1), pairs.storage_offset())


Decay = NoDecay | HeadDecay | ChannelDecay


def load_decay(log_decay: Tensor | None, block: Block, span: slice, chunk: int, dtype: torch.dtype) -> Decay:
    """Of one block of log_decay: None, (b, t, h) or (b, t, h, k)."""
    if log_decay is None:
        return NoDecay()
    if log_decay.ndim == 3:
        return HeadDecay(load(log_decay[..., None], block, span, chunk, dtype))
    return ChannelDecay(load(log_decay, block, span, chunk, dtype))
