"""How the kernels of generalized_delta_rule are launched.

BLOCK_T: tokens of a chunk, for all kernels of a call. BLOCK: columns of a memory that a program of a walk owns, or that
one of the last kernel takes at a time. Width is the wider of the two head dims.
"""

from ..._configs import ConfigTable

Rows = dict[int, tuple[int, int]]  # by width: the tile, num_warps


def _table(part: str, tile: str, sizes: tuple[int, ...], half: Rows, single: tuple[int, int]) -> ConfigTable:
    """half: in half precision, with at most 4 warps of AMD's 64 threads. single: in float32, of any width."""
    choices = {tile: sizes, "num_warps": (2, 4, 8), "num_stages": (1, 2, 3)}
    rows = {}
    for maker, most in (("cuda", 8), ("hip", 4)):
        rows |= {(maker, "half", width): (size, min(num_warps, most), 1) for width, (size, num_warps) in half.items()}
        rows[maker, "float32", 256] = (*single, 1)
    spelled = {row: dict(zip(choices, values, strict=True)) for row, values in rows.items()}
    return ConfigTable(f"generalized_delta_rule_{part}_kernel", spelled, choices)


# Chunks of 16 tokens: with 32, a program of the last kernel would need more registers than it has.
PAIRS = _table("pairs", "BLOCK_T", (16, 32, 64), {64: (16, 4), 256: (16, 8)}, (16, 4))
WALK = _table("walk", "BLOCK", (16, 32, 64, 128), {128: (32, 8), 256: (16, 8)}, (16, 8))
BACKWARD_WALK = _table("bwd_walk", "BLOCK", (16, 32, 64, 128), {128: (32, 8), 256: (16, 8)}, (16, 8))
BACKWARD_CHUNK = _table("bwd_chunk", "BLOCK", (16, 32, 64, 128), {128: (32, 8), 256: (16, 8)}, (16, 8))
