"""Launches of long_conv, by architecture, dtype and length of the transform; SEVERAL is of more blocks than one."""

from ..._configs import Config, ConfigTable

MAKERS, KINDS = ("cuda", "hip"), ("half", "float32")
SEVERAL = 8192

TAPS = ConfigTable(
    "long_conv_taps",
    {
        (maker, kind, n): dict(num_warps=num_warps)
        for maker in MAKERS for kind in KINDS for n, num_warps in ((1024, 4), (SEVERAL, 8))
    },
    {"num_warps": (4, 8)},
)  # fmt: skip


def _launch(channels: int, num_warps: int = 8) -> Config:
    return dict(CHANNELS=channels, num_warps=num_warps, num_stages=1)


# Channels of which the registers hold all that the hot loop needs; a float16 product is three on NVIDIA's tensor cores.
SHORT = {
    ("cuda", "half", 1024): _launch(4),
    ("cuda", "float16", 1024): _launch(2),
    ("cuda", "float32", 1024): _launch(4),
    ("hip", "half", 1024): _launch(2, num_warps=4),
    ("hip", "float32", 1024): _launch(4),
}
# Blackwell's tensor memory has no room for the longest transform's products; sixteen warps make them without it.
SHORT |= {("sm_100", kind, 1024): SHORT["cuda", kind, 1024] for kind in ("half", "float16", "float32")}
LONG = {(maker, kind, SEVERAL): _launch(2) for maker in MAKERS for kind in KINDS}
LONG |= {("sm_100", kind, SEVERAL): _launch(2, num_warps=16) for kind in KINDS}

CHOICES = {"CHANNELS": (1, 2, 4, 8), "num_warps": (4, 8, 16)}
ALONE = {
    ("cuda", "float16", 1024): _launch(1, num_warps=4),
    ("cuda", "float16", 4096): _launch(1),
    ("cuda", "float16", SEVERAL): _launch(2),
    ("sm_100", "half", 4096): _launch(1, num_warps=16),
}
FORWARD = ConfigTable("long_conv_fwd", SHORT | LONG | ALONE, CHOICES)
BACKWARD = ConfigTable("long_conv_bwd", SHORT | LONG, CHOICES)
