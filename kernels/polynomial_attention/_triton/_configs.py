"""How the walks of polynomial_attention are launched. Widths are the head dim of v."""

from ..._configs import ConfigTable

MAKERS = ("cuda", "hip")
HOW = {"num_warps": (4, 8), "num_stages": (1, 2, 3)}
# What spills nothing; in float32, without tensor cores, a product is unrolled into registers.
FLOAT32 = {"num_warps": 8, "num_stages": 1}

# BLOCK_V: columns of the state that a program owns.
WALK = ConfigTable(
    "polynomial_attention_walk_kernel",
    {(maker, "half", 256): dict(BLOCK_T=32, BLOCK_V=16, num_warps=4, num_stages=1) for maker in MAKERS}
    | {(maker, "float32", 256): dict(BLOCK_T=16, BLOCK_V=16, **FLOAT32) for maker in MAKERS},
    {"BLOCK_T": (16, 32, 64), "BLOCK_V": (16, 32, 64)} | HOW,
)
# BLOCK_I: dims i whose products x_i x_j, all j, a program owns.
BWD_WALK = ConfigTable(
    "polynomial_attention_bwd_walk_kernel",
    {(maker, "half", 64): dict(BLOCK_T=16, BLOCK_I=4, num_warps=4, num_stages=1) for maker in MAKERS}
    | {(maker, "half", 128): dict(BLOCK_T=16, BLOCK_I=4, num_warps=8, num_stages=1) for maker in MAKERS}
    | {(maker, "half", 256): dict(BLOCK_T=16, BLOCK_I=2, num_warps=8, num_stages=1) for maker in MAKERS}
    | {(maker, "float32", 64): dict(BLOCK_T=16, BLOCK_I=4, **FLOAT32) for maker in MAKERS}
    | {(maker, "float32", 256): dict(BLOCK_T=16, BLOCK_I=2, **FLOAT32) for maker in MAKERS}
    | {("sm_90", "bfloat16", 32): dict(BLOCK_T=16, BLOCK_I=4, num_warps=4, num_stages=1)}
    | {("sm_90", "bfloat16", 64): dict(BLOCK_T=16, BLOCK_I=8, num_warps=4, num_stages=1)},
    {"BLOCK_T": (16, 32, 64), "BLOCK_I": (2, 4, 8, 16)} | HOW,
)
