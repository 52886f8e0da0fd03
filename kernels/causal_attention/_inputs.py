"""Inputs that exercise causal_attention; the contract test and the benchmarks draw from here."""

import torch
from torch import Tensor

CASES = {
    "one-token": dict(b=2, t=1, h=2, k=16, sinks=True),  # without sinks dq and dk are 0: no scale for their errors
    "ragged": dict(b=2, t=37, h=2, k=24, v=40),
    "sharp": dict(b=1, t=33, h=2, k=16, gain=8.0),
    "grouped-3": dict(b=1, t=21, h=6, g=2, k=16, v=8),
    "grouped-7-window": dict(b=1, t=40, h=7, g=1, k=7, window=9),
    "window-one": dict(b=1, t=19, h=2, k=16, window=1, sinks=True),
    "window": dict(b=2, t=70, h=2, k=16, window=13),
    "window-long": dict(b=1, t=273, h=1, k=16, window=75),
    "window-wider-than-row": dict(b=1, t=19, h=1, k=16, window=50),
    "cached": dict(b=2, t=5, s=67, h=4, g=2, k=16),
    "cached-window": dict(b=1, t=35, s=69, h=2, k=12, window=17),
    "decode": dict(b=2, t=1, s=65, h=6, g=2, k=16, v=24),
    "decode-everything": dict(
        b=3, t=1, s=50, h=2, g=1, k=16, window=20, softcap=3.0, scale=0.5, sinks=True, starts=(0, 40, 50)
    ),
    "softcap": dict(b=1, t=35, h=2, k=16, softcap=2.0, scale=0.7),
    "sinks": dict(b=2, t=35, h=2, k=16, sinks=True),
    "padded": dict(b=3, t=35, h=2, k=16, starts=(0, 20, 35)),
    "everything": dict(
        b=2, t=40, s=53, h=3, g=1, k=20, v=9, window=11, softcap=4.0, scale=0.3, sinks=True, starts=(7, 31)
    ),
    "packed": dict(b=1, t=60, h=2, g=1, k=16, cu_seqlens=(0, 0, 1, 23, 23, 60)),
    "packed-everything": dict(
        b=1, t=41, h=2, k=16, v=8, window=6, softcap=4.0, sinks=True, cu_seqlens=(0, 5, 40, 41, 41)
    ),
}


def make_inputs(
    generator: torch.Generator,
    b: int,
    t: int,
    h: int,
    k: int,
    s: int | None = None,
    g: int | None = None,
    v: int | None = None,
    gain: float = 1.0,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: bool = False,
    starts: tuple[int, ...] | None = None,
    cu_seqlens: tuple[int, ...] | None = None,
) -> dict[str, Tensor | int | float | None]:
    """Arguments of the op by name: floating tensors in float64, absent ones left out. `gain` sharpens the softmax."""

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    s, g, v = s or t, g or h, v or k
    inputs = {"q": gain * randn(b, t, h, k), "k": randn(b, s, g, k), "v": randn(b, s, g, v)}
    inputs |= {"window": window, "scale": scale, "softcap": softcap}
    if sinks:
        inputs["sinks"] = randn(h)
    if starts is not None:
        inputs["starts"] = torch.tensor(starts)
    if cu_seqlens is not None:
        inputs["cu_seqlens"] = torch.tensor(cu_seqlens, dtype=torch.int32)
    return inputs
