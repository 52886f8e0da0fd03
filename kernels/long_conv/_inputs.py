"""Inputs that exercise long_conv; the contract test and the benchmarks draw from here."""

import torch
from torch import Tensor

CASES = {
    "one-token": dict(b=2, t=1, d=3, l=1),
    "longer-filter": dict(b=1, t=2, d=5, l=7, skip=False),
    "prime": dict(b=3, t=37, d=5, l=37),
    "shorter-filter": dict(b=2, t=41, d=17, l=10, post_gate=False),
    "one-tap": dict(b=1, t=5, d=4, l=1, pre_gate=False),
    "plain": dict(b=2, t=65, d=3, l=65, skip=False, pre_gate=False, post_gate=False),
    "wide": dict(b=1, t=16, d=40, l=16, pre_gate=False),
}


def make_inputs(
    generator: torch.Generator,
    b: int,
    t: int,
    d: int,
    l: int,
    skip: bool = True,
    pre_gate: bool = True,
    post_gate: bool = True,
) -> dict[str, Tensor]:
    """Arguments of the op by name: floating tensors in float64, absent ones left out."""

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {"x": randn(b, t, d), "filter": randn(d, l) / l**0.5}
    if skip:
        inputs["skip"] = randn(d)
    if pre_gate:
        inputs["pre_gate"] = randn(b, t, d)
    if post_gate:
        inputs["post_gate"] = randn(b, t, d)
    return inputs
