"""Launches of long_conv, by architecture, dtype and length of the transform."""

from ..._configs import ConfigTable
from ._fourier import FACTORS

TAPS = ConfigTable(
    "long_conv_taps",
    {(maker, kind, n): dict(num_warps=4 if n <= 1024 else 8)
     for maker in ("cuda", "hip") for kind in ("half", "float32") for n in FACTORS},
    {"num_warps": (4, 8)},
)  # fmt: skip
ROWS = {
    **{(maker, kind, n): dict(CHANNELS=4, num_warps=4 if n <= 1024 else 8, num_stages=1)
     for maker in ("cuda", "hip") for kind in ("half", "float32") for n in FACTORS},
}  # fmt: skip
CHOICES = {"CHANNELS": (2, 4, 8), "num_warps": (4, 8)}
FORWARD = ConfigTable("long_conv_fwd", ROWS, CHOICES)
BACKWARD = ConfigTable("long_conv_bwd", ROWS, CHOICES)
