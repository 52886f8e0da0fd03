"""How the kernels of causal_attention are launched. Widths are of the wider of k and v, padded to a power of 2."""

from ..._configs import ConfigTable

Rows = dict[int, tuple[int, ...]]  # by width
# Products without matrix units are unrolled into registers: small tiles, for many warps.
FORWARD_FLOAT32: Rows = {128: (32, 32, 8, 1), 256: (16, 16, 8, 1)}
BACKWARD_FLOAT32: Rows = {64: (32, 32, 32, 8, 1), 256: (16, 16, 16, 8, 1)}


def _table(kernel: str, keywords: dict[str, tuple[int, ...]], float32: Rows, **families: Rows) -> ConfigTable:
    rows = {(maker, "float32", width): row for maker in ("cuda", "hip") for width, row in float32.items()}
    rows |= {(family, "half", width): row for family, own in families.items() for width, row in own.items()}
    spelled = {row: dict(zip(keywords, sizes, strict=True)) for row, sizes in rows.items()}
    return ConfigTable(kernel, spelled, keywords)


BLOCKS = (16, 32, 64, 128)
HOW = {"num_warps": (4, 8), "num_stages": (1, 2, 3)}
# Where products read operands from shared memory, wide blocks of keys keep the matrix units busy; elsewhere operands
# take registers, and what spills nothing comes first.
FORWARD_FROM_SHARED: Rows = {64: (128, 128, 8, 2), 128: (128, 64, 8, 2)}
FORWARD = _table(
    "causal_attention_fwd_kernel", {"BLOCK_M": BLOCKS, "BLOCK_N": BLOCKS} | HOW, FORWARD_FLOAT32,
    cuda={64: (128, 32, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 1)}, sm_90=FORWARD_FROM_SHARED,
    sm_100=FORWARD_FROM_SHARED | {64: (128, 64, 8, 2)},
    hip={64: (128, 64, 4, 2), 128: (128, 32, 4, 2), 256: (128, 32, 8, 1)},
)  # fmt: skip
# BLOCK: queries or keys of a program; it walks over BLOCK_M queries or BLOCK_N keys at a time. Two accumulators of a
# whole block of keys leave registers for narrow blocks of queries only.
FROM_SHARED: Rows = {64: (128, 64, 128, 8, 1), 128: (128, 32, 64, 8, 1)}
FROM_REGISTERS: Rows = {64: (128, 32, 64, 8, 2), 128: (128, 16, 32, 8, 1), 256: (32, 32, 32, 8, 1)}
BACKWARD = _table(
    "causal_attention_bwd_kernel", {"BLOCK": BLOCKS, "BLOCK_M": BLOCKS, "BLOCK_N": BLOCKS} | HOW, BACKWARD_FLOAT32,
    cuda=FROM_REGISTERS, hip=FROM_REGISTERS | {256: (32, 32, 32, 4, 1)}, sm_90=FROM_SHARED, sm_100=FROM_SHARED,
)  # fmt: skip
