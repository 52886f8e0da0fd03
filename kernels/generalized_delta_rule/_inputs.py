"""Inputs that exercise generalized_delta_rule; the contract test and the benchmarks draw from here."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._drawing import draw_log_decay

CASES = {
    "one-token": dict(b=2, t=1, h=2, k=8, v=5),
    "plain": dict(b=2, t=37, h=2, k=16, v=24, state=False),
    "odd": dict(b=1, t=66, h=1, k=20, v=9, scale=0.5),
    "extreme": dict(b=1, t=40, h=1, k=24, v=16, gates=(0.0, -1e-4, -1.0, -20.0, -100.0)),
    "packed": dict(b=1, t=36, h=2, k=16, v=12, cu_seqlens=(0, 1, 1, 18, 36)),
}


def make_inputs(
    generator: torch.Generator,
    b: int,
    t: int,
    h: int,
    k: int,
    v: int,
    gates: tuple[float, ...] | None = None,
    scale: float | None = None,
    state: bool = True,
    cu_seqlens: tuple[int, ...] | None = None,
) -> dict[str, Tensor | float]:
    """Arguments of the op by name: floating tensors in float64, absent ones left out.

    a and b are RWKV-7's, of unit norm and erasing a share of each channel, but for a part of b that goes astray.
    `gates` are the only values that log_decay takes.
    """

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shape = (b, t, h, k)
    key = F.normalize(randn(*shape), dim=-1)
    inputs = {
        "q": randn(*shape), "k": randn(*shape), "v": randn(b, t, h, v),
        "a": -key, "b": key * randn(*shape).sigmoid() + 0.3 * F.normalize(randn(*shape), dim=-1),
    }  # fmt: skip
    inputs["log_decay"] = draw_log_decay(generator, shape, gates)
    if scale is not None:
        inputs["scale"] = scale
    if state:
        n = b if cu_seqlens is None else len(cu_seqlens) - 1
        inputs["state"] = randn(n, h, k, v)
    if cu_seqlens is not None:
        inputs["cu_seqlens"] = torch.tensor(cu_seqlens, dtype=torch.int32)
    return inputs
