"""Inputs that exercise short_conv; the contract test and the benchmarks draw from here."""

import torch
from torch import Tensor

CASES = {
    "one-token": dict(b=2, t=1, d=8, w=4),
    "shorter-than-filter": dict(b=1, t=2, d=5, w=4, state=False),
    "ragged": dict(b=2, t=37, d=19, w=3, activation="silu"),
    "widest": dict(b=1, t=35, d=24, w=8, bias=False),
    "width-one": dict(b=1, t=5, d=4, w=1),
    "packed": dict(b=1, t=41, d=16, w=4, cu_seqlens=(0, 1, 1, 7, 41), activation="silu"),
    "packed-from-zero": dict(b=1, t=21, d=16, w=2, cu_seqlens=(0, 20, 21), state=False),
}


def make_inputs(
    generator: torch.Generator,
    b: int,
    t: int,
    d: int,
    w: int,
    bias: bool = True,
    state: bool = True,
    cu_seqlens: tuple[int, ...] | None = None,
    activation: str | None = None,
) -> dict[str, Tensor | str]:
    """Arguments of the op by name: floating tensors in float64, absent ones left out."""

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    inputs = {"x": randn(b, t, d), "weight": randn(d, w) / w**0.5, "activation": activation}
    if bias:
        inputs["bias"] = randn(d)
    if state and w > 1:
        inputs["state"] = randn(n, w - 1, d)
    if cu_seqlens is not None:
        inputs["cu_seqlens"] = torch.tensor(cu_seqlens, dtype=torch.int32)
    return inputs
