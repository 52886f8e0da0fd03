"""How the kernels of delta_rule are launched.

BLOCK_T: tokens of a chunk, for all kernels of a call. BLOCK: columns of a memory that a program of a walk owns, or that
one of the last kernel takes at a time. Width is the wider of the two head dims.
"""

from torch import Tensor

from ..._configs import ConfigTable

LAUNCH = {"num_warps": (2, 4, 8), "num_stages": (1, 2, 3)}
Rows = dict[int, tuple[int, ...]]  # by width


def _table(
    part: str, decay: str, tile: str, sizes: tuple[int, ...], half: Rows, single: tuple[int, ...], **others: Rows
) -> ConfigTable:
    """half: for every GPU in half precision, but for the families that are named. single: for float32."""
    choices = {tile: sizes} | LAUNCH
    four_warps = {width: (size, 4, num_stages) for width, (size, _, num_stages) in half.items()}  # of 64 threads
    rows = {}
    for family, own in ({"cuda": half, "hip": four_warps} | others).items():
        rows |= {(family, "half", width): row for width, row in own.items()}
    rows |= {(maker, "float32", 256): single for maker in ("cuda", "hip")}
    spelled = {row: dict(zip(choices, values, strict=True)) for row, values in rows.items()}
    return ConfigTable(f"delta_rule_{part}_kernel, {decay}", spelled, choices)


def _chunked(part: str, decay: str, half: Rows, **others: Rows) -> ConfigTable:
    return _table(part, decay, "BLOCK_T", (16, 32, 64), half, (16, 4, 1), **others)


def _walking(part: str, decay: str, half: Rows, **others: Rows) -> ConfigTable:
    return _table(part, decay, "BLOCK", (16, 32, 64, 128), half, (16, 8, 1), **others)


DECAYS = {"none": "no decay", "head": "decay a head", "channel": "decay a channel"}
# What spills nothing in a hot loop; of that, the longest chunks, which move the fewest memories.
SHORT: Rows = {128: (32, 4, 1), 256: (16, 4, 1)}
BY_CHANNEL: Rows = {64: (32, 4, 1), 256: (16, 4, 1)}
LONG = {family: {128: (64, 4, 1), 256: (16, 4, 1)} for family in ("sm_90", "sm_100")}
NARROW: Rows = {64: (32, 8, 1), 256: (16, 8, 1)}
WIDE: Rows = {128: (32, 8, 1), 256: (16, 8, 1)}
PAIRS = {kind: _chunked("pairs", name, SHORT, **LONG) for kind, name in DECAYS.items()}
PAIRS["channel"] = _chunked("pairs", DECAYS["channel"], BY_CHANNEL)
WALK = {kind: _walking("walk", name, NARROW) for kind, name in DECAYS.items()}
WALK["head"] = _walking("walk", DECAYS["head"], NARROW, sm_100={64: (32, 8, 1), 128: (16, 8, 1), 256: (32, 8, 1)})
BACKWARD_WALK = {kind: _walking("bwd_walk", name, WIDE) for kind, name in DECAYS.items()}
BACKWARD_CHUNK = {kind: _walking("bwd_chunk", name, WIDE) for kind, name in DECAYS.items()}


def kind_of(log_decay: Tensor | None) -> str:
    if log_decay is None:
        return "none"
    return "head" if log_decay.ndim == 3 else "channel"
