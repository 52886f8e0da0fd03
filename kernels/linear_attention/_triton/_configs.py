"""How the kernels of linear_attention are launched.

BLOCK_T: tokens of a chunk. BLOCK: columns of a memory that a program owns; of BACKWARD_KV, that many or all it has, for
with all of them one launch gives dk and dv together. Width is the wider of the two head dims.
"""

from torch import Tensor

from ..._configs import ConfigTable

CHOICES = {"BLOCK_T": (16, 32, 64, 128), "BLOCK": (16, 32, 64, 128), "num_warps": (2, 4, 8), "num_stages": (1, 2, 3)}
Rows = dict[int, tuple[int, ...]]  # by width
# Without tensor cores, as in float32, a product is unrolled into registers: the smallest there is, for many warps.
FLOAT32: Rows = {256: (16, 16, 8, 1)}


def _table(part: str, decay: str, half: Rows, **others: Rows) -> ConfigTable:
    """half: for every GPU in half precision, but for the `others`: a family, or a family and "_float16"."""
    four_warps = {width: (*tile, 4, num_stages) for width, (*tile, _, num_stages) in half.items()}  # of 64 threads
    families = {"cuda": half, "hip": four_warps} | others
    rows = {}
    for name, own in families.items():
        family, is_float16 = name.removesuffix("_float16"), name.endswith("_float16")
        rows |= {(family, "float16" if is_float16 else "half", width): row for width, row in own.items()}
    rows |= {(maker, "float32", width): row for maker in ("cuda", "hip") for width, row in FLOAT32.items()}
    spelled = {row: dict(zip(CHOICES, sizes, strict=True)) for row, sizes in rows.items()}
    return ConfigTable(f"linear_attention_{part}_kernel, {decay}", spelled, CHOICES)


def _from_shared(rows: Rows) -> dict[str, Rows]:
    """For Hopper and later, whose products read operands from shared memory."""
    return {"sm_90": rows, "sm_100": rows}


def _float16(rows: Rows) -> dict[str, Rows]:
    """There, for float16, whose memories are read as float32."""
    return {"sm_90_float16": rows, "sm_100_float16": rows}


# What spills nothing in a hot loop; of that, what moves least and then what keeps the multiprocessors busiest.
WIDE: Rows = {64: (64, 32, 4, 1), 128: (32, 32, 4, 1), 256: (32, 32, 8, 1)}
FADING: Rows = {64: (32, 32, 4, 1), 128: (32, 32, 8, 1), 256: (32, 32, 8, 1)}
BY_CHANNEL: Rows = {64: (16, 32, 4, 1), 128: (16, 32, 8, 1), 256: (16, 32, 8, 1)}
STATES = {
    "none": _table("states", "no decay", WIDE, **_from_shared({128: (64, 32, 4, 1)})),
    "head": _table("states", "decay a head", WIDE, **_from_shared({128: (64, 32, 4, 1)})),
    "channel": _table("states", "decay a channel", BY_CHANNEL, **_from_shared({64: (32, 32, 4, 1)})),
}
FORWARD = {
    "none": _table(
        "fwd", "no decay", WIDE, **_from_shared({128: (64, 32, 4, 1), 256: (16, 32, 4, 1)}),
        **_float16({64: (64, 32, 4, 1), 128: (32, 32, 4, 1), 256: (32, 32, 8, 1)}),
    ),
    "head": _table(
        "fwd", "decay a head", FADING, **_from_shared(FADING | {32: (64, 32, 4, 1), 256: (16, 32, 8, 1)}),
        hip={128: (32, 32, 4, 1), 256: (16, 32, 4, 1)},
    ),
    "channel": _table("fwd", "decay a channel", BY_CHANNEL | {256: (16, 16, 8, 1)}),
}  # fmt: skip
BACKWARD_Q = {
    "none": _table(
        "bwd_q", "no decay", WIDE, **_from_shared({128: (64, 32, 4, 1), 256: (16, 32, 4, 1)}),
        **_float16({128: (64, 32, 4, 1), 256: (32, 32, 8, 1)}),
    ),
    "head": _table(
        "bwd_q", "decay a head", FADING, **_from_shared({128: (32, 64, 8, 1), 256: (16, 32, 8, 1)}),
        sm_80={32: (32, 32, 4, 1), 64: (32, 64, 4, 1)},
    ),
    "channel": _table(
        "bwd_q", "decay a channel", BY_CHANNEL, **_from_shared({64: (32, 32, 4, 1), 128: (32, 16, 4, 1)})
    ),
}  # fmt: skip
BY_HEAD: Rows = {32: (16, 32, 4, 1), 64: (16, 64, 8, 1), 128: (16, 64, 8, 1), 256: (16, 32, 8, 1)}
BACKWARD_KV = {
    "none": _table(
        "bwd_kv", "no decay", WIDE | {64: (16, 64, 8, 1), 128: (16, 64, 8, 1), 256: (16, 32, 8, 1)},
        **_from_shared({64: (32, 64, 4, 1), 128: (16, 128, 8, 1), 256: (16, 64, 8, 1)}),
        **_float16({64: (16, 64, 8, 1), 128: (16, 128, 8, 1), 256: (16, 32, 8, 1)}),
    ),
    "head": _table(
        "bwd_kv", "decay a head", WIDE | BY_HEAD | {64: (16, 32, 8, 1), 256: (16, 16, 8, 1)},
        **_from_shared(BY_HEAD),
        **_float16(BY_HEAD | {256: (16, 16, 8, 1)}),
    ),
    "channel": _table(
        "bwd_kv", "decay a channel", BY_CHANNEL | {32: (16, 16, 4, 1), 256: (16, 16, 8, 1)},
        **_from_shared({16: (16, 16, 2, 1), 32: (16, 16, 4, 1), 128: (16, 32, 8, 1), 256: (16, 16, 8, 1)}),
        **_float16({16: (16, 16, 2, 1), 32: (16, 16, 4, 1), 64: (16, 32, 8, 1), 256: (16, 32, 8, 1)}),
    ),
}  # fmt: skip


def kind_of(log_decay: Tensor | None) -> str:
    if log_decay is None:
        return "none"
    return "head" if log_decay.ndim == 3 else "channel"
