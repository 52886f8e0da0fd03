"""Pairs of tokens inside a chunk where every key channel fades on its own.

The weight exp(c_i - c_j) of a channel does not factor safely over a chunk. So the chunk is halved again and again:
between a late and an early half the reference is their border, where both exponents are <= 0 whatever the decay.
"""

import triton
import triton.language as tl

from ._tiles import dot, times


@triton.jit
def border_factor(coarse, fine, HALF: tl.constexpr):
    """What is left between each token and the last token of the early half of its pair of runs, (BLOCK_T, BLOCK_K)."""
    BLOCK_T: tl.constexpr = coarse.shape[0]
    BLOCK_K: tl.constexpr = coarse.shape[1]
    place = tl.arange(0, 2 * HALF)[None, :, None]
    in_runs: tl.constexpr = (BLOCK_T // (2 * HALF), 2 * HALF, BLOCK_K)
    coarse_runs = tl.reshape(coarse, in_runs)
    fine_runs = tl.reshape(fine, in_runs)
    border_coarse = tl.sum(tl.where(place == HALF - 1, coarse_runs, 0.0), 1)[:, None, :]
    border_fine = tl.sum(tl.where(place == HALF - 1, fine_runs, 0.0), 1)[:, None, :]
    distance = (coarse_runs - border_coarse) + (fine_runs - border_fine)
    factor = tl.exp2(tl.where(place >= HALF, distance, -distance))
    return tl.reshape(factor, (BLOCK_T, BLOCK_K))


@triton.jit
def late_and_early(offs_t, HALF: tl.constexpr):
    """Pairs (BLOCK_T, BLOCK_T) whose query is in the late and whose key in the early half of the same two runs."""
    run = offs_t // HALF
    return (run[:, None] == run[None, :] + 1) & (run[:, None] % 2 == 1)


@triton.jit
def weights_by_channel(q, k, coarse, fine, offs_t, LEVELS: tl.constexpr):
    """Weights (BLOCK_T, BLOCK_T) before scaling; row: query, column: key; a token sees itself unfaded."""
    weights = tl.where(offs_t[:, None] == offs_t[None, :], dot(q, tl.trans(k)), 0.0)
    for level in tl.static_range(LEVELS):
        factor = border_factor(coarse, fine, 1 << level)
        pairs = dot(times(q, factor), tl.trans(times(k, factor)))
        weights += tl.where(late_and_early(offs_t, 1 << level), pairs, 0.0)
    return weights
