"""Inputs that exercise polynomial_attention; the contract test and the benchmarks draw from here."""

import torch
from torch import Tensor

from ._reference import polynomial_attention as reference

BASED, REBASED = (1.0, 1.0, 0.5), (0.0, 0.0, 1.0)

CASES = {
    "one-token": dict(b=2, t=1, h=2, k=4, v=6),
    "one-token-from-zero": dict(b=1, t=1, h=1, k=16, v=8, state=False, normalize=False),
    "ragged": dict(b=1, t=37, h=2, k=5, v=11),
    "based-from-zero": dict(b=1, t=70, h=1, k=16, v=24, state=False),
    "rebased": dict(b=2, t=19, h=1, k=8, v=5, coefficients=REBASED, normalize=False),
    "linear-term-only": dict(b=1, t=33, h=1, k=12, v=16, coefficients=(0.0, 1.0, 0.0), normalize=False),
    "no-linear-term": dict(b=1, t=21, h=1, k=3, v=4, coefficients=(0.5, 0.0, 2.0), scale=0.3),
    "constant-only": dict(b=1, t=18, h=1, k=3, v=4, coefficients=(2.0, 0.0, 0.0)),
    "wide-keys": dict(b=1, t=20, h=1, k=40, v=20),
    "packed": dict(b=1, t=40, h=2, k=7, v=9, cu_seqlens=(0, 1, 1, 18, 40)),
    "packed-from-zero": dict(b=1, t=35, h=1, k=16, v=16, cu_seqlens=(0, 34, 35, 35), state=False, normalize=False),
}


def make_inputs(
    generator: torch.Generator,
    b: int,
    t: int,
    h: int,
    k: int,
    v: int,
    coefficients: tuple[float, float, float] = BASED,
    scale: float | None = None,
    normalize: bool = True,
    state: bool = True,
    cu_seqlens: tuple[int, ...] | None = None,
) -> dict[str, Tensor | tuple[float, ...] | float | bool]:
    """Arguments of the op by name: floating tensors in float64, absent ones left out.

    A state is what five earlier tokens left: with `normalize` an arbitrary one could make the sum of weights 0.
    """

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    n = b if cu_seqlens is None else len(cu_seqlens) - 1
    inputs = {"q": randn(b, t, h, k), "k": randn(b, t, h, k), "v": randn(b, t, h, v)}
    inputs |= {"coefficients": coefficients, "scale": scale, "normalize": normalize}
    if state:
        past = randn(n, 5, h, k), randn(n, 5, h, k), randn(n, 5, h, v)
        inputs["state"] = reference(*past, None, None, list(coefficients), 1.0, normalize)[1]
    if cu_seqlens is not None:
        inputs["cu_seqlens"] = torch.tensor(cu_seqlens, dtype=torch.int32)
    return inputs
