"""How the walks of polynomial_attention are launched. Widths are the head dim of v."""

from ..._configs import Config, ConfigTable

HOW = {"num_warps": (4, 8), "num_stages": (1, 2, 3)}


# What spills nothing; in float32, without tensor cores, a product is unrolled into registers, for many warps.
def _walk(block_t: int, num_warps: int = 4) -> Config:
    return dict(BLOCK_T=block_t, BLOCK_V=16, num_warps=num_warps, num_stages=1)


# BLOCK_V: columns of the state that a program owns.
WALK = ConfigTable(
    "polynomial_attention_walk_kernel",
    {
        ("cuda", "half", 256): _walk(32),
        ("cuda", "float16", 256): _walk(16),  # its operands are float32
        ("cuda", "float32", 256): _walk(16, num_warps=8),
        ("hip", "half", 256): _walk(32),
        ("hip", "float32", 256): _walk(16, num_warps=8),
    },
    {"BLOCK_T": (16, 32, 64), "BLOCK_V": (16, 32, 64)} | HOW,
)


def _bwd_walk(block_i: int, block_v: int, num_warps: int) -> Config:
    return dict(BLOCK_T=16, BLOCK_I=block_i, BLOCK_V=block_v, num_warps=num_warps, num_stages=1)


# BLOCK_I: dims i whose products x_i x_j, all j, a program owns, for BLOCK_V columns of v: of several blocks of columns
# each gives a part of dx, so one block has them all unless registers are short.
BWD_WALK = ConfigTable(
    "polynomial_attention_bwd_walk_kernel",
    {
        ("cuda", "half", 64): _bwd_walk(2, 64, 4),
        ("cuda", "half", 256): _bwd_walk(2, 128, 8),
        ("cuda", "float32", 64): _bwd_walk(4, 64, 8),
        ("cuda", "float32", 256): _bwd_walk(2, 256, 8),
        ("sm_80", "half", 64): _bwd_walk(4, 64, 4),
        ("sm_80", "half", 128): _bwd_walk(4, 128, 8),
        ("sm_90", "half", 64): _bwd_walk(2, 64, 4),
        ("sm_90", "half", 256): _bwd_walk(2, 128, 8),
        ("sm_90", "float16", 64): _bwd_walk(2, 64, 4),
        ("sm_90", "float16", 128): _bwd_walk(1, 128, 8),
        ("sm_90", "float16", 256): _bwd_walk(2, 128, 8),
        ("sm_100", "half", 16): _bwd_walk(4, 16, 4),
        ("sm_100", "half", 32): _bwd_walk(2, 32, 4),
        ("sm_100", "half", 64): _bwd_walk(4, 64, 4),
        ("sm_100", "half", 256): _bwd_walk(2, 128, 8),
        ("hip", "half", 64): _bwd_walk(4, 64, 4),
        ("hip", "half", 256): _bwd_walk(4, 128, 4),
        ("hip", "float32", 64): _bwd_walk(4, 64, 8),
        ("hip", "float32", 256): _bwd_walk(2, 256, 8),
    },
    {"BLOCK_T": (16, 32, 64), "BLOCK_I": (1, 2, 4, 8, 16), "BLOCK_V": (32, 64, 128, 256)} | HOW,
)
