"""What fades in a chunk: until a token reads, and until it asks, which is before it fades itself."""

import triton
import triton.language as tl

from ..._tiles import FADED, GRID, LOG2_E, fade, tile


@triton.jit
def load_fades(gate_rows, mask_t, offs_k, mask_k):
    """See `fade`: sums until and with each token, those without it, and the sums of all tokens.

    (BLOCK_T, BLOCK_K) each, coarse and fine; the last two (BLOCK_K,).
    """
    log_decay = tile(gate_rows, mask_t, offs_k, mask_k)
    coarse, fine, all_coarse, all_fine = fade(log_decay)
    own = tl.maximum(log_decay.to(tl.float32), FADED) * LOG2_E
    own_coarse = tl.floor(own * GRID + 0.5) / GRID
    return coarse, fine, coarse - own_coarse, fine - (own - own_coarse), all_coarse, all_fine


@triton.jit
def ask_factor(coarse_before, fine_before, HALF: tl.constexpr):
    """What `border_factor` is for late tokens that read, for late tokens that ask; 1 for early ones.

    The first late token asks what is left at the border itself.
    """
    BLOCK_T: tl.constexpr = coarse_before.shape[0]
    BLOCK_K: tl.constexpr = coarse_before.shape[1]
    place = tl.arange(0, 2 * HALF)[None, :, None]
    in_runs: tl.constexpr = (BLOCK_T // (2 * HALF), 2 * HALF, BLOCK_K)
    coarse_runs = tl.reshape(coarse_before, in_runs)
    fine_runs = tl.reshape(fine_before, in_runs)
    border_coarse = tl.sum(tl.where(place == HALF, coarse_runs, 0.0), 1)[:, None, :]
    border_fine = tl.sum(tl.where(place == HALF, fine_runs, 0.0), 1)[:, None, :]
    distance = (coarse_runs - border_coarse) + (fine_runs - border_fine)
    return tl.reshape(tl.exp2(tl.where(place > HALF, distance, 0.0)), (BLOCK_T, BLOCK_K))
