"""Launches of long_conv, by architecture, dtype and length of the transform."""

from ..._configs import ConfigTable
from ._fourier import FACTORS

MAKERS, KINDS = ("cuda", "hip"), ("half", "float32")
WARPS = (4, 8)

TAPS = ConfigTable(
    "long_conv_taps",
    {(maker, kind, n): dict(num_warps=4 if n <= 1024 else 8) for maker in MAKERS for kind in KINDS for n in FACTORS},
    {"num_warps": WARPS},
)
# Two channels of the longest transform are what the registers of eight warps hold. Blackwell's tensor memory has no
# room for its products; sixteen warps make them without it.
ROWS = {
    **{
        (maker, kind, n): dict(CHANNELS=4 if n <= 1024 else 2, num_warps=8, num_stages=1)
        for maker in MAKERS
        for kind in KINDS
        for n in FACTORS
    },
    **{("sm_100", kind, max(FACTORS)): dict(CHANNELS=2, num_warps=16, num_stages=1) for kind in KINDS},
}
CHOICES = {"CHANNELS": (2, 4, 8), "num_warps": (4, 8, 16)}
FORWARD = ConfigTable("long_conv_fwd", ROWS, CHOICES)
BACKWARD = ConfigTable("long_conv_bwd", ROWS, CHOICES)
