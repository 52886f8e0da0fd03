"""Inputs that exercise delta_rule; the contract test and the benchmarks draw from here."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._drawing import draw_log_decay

CASES = {
    "one-token": dict(b=2, t=1, h=2, k=8, v=5, decay="head"),
    "one-token-channel": dict(b=1, t=1, h=1, k=6, v=16, decay="channel"),
    "plain": dict(b=2, t=37, h=2, k=16, v=24, state=False),
    "head-decay": dict(b=1, t=67, h=2, k=20, v=16, decay="head"),
    "head-extreme": dict(b=1, t=50, h=1, k=16, v=40, decay="head", gates=(0.0, -1e-4, -1.0, -20.0, -100.0)),
    "channel-decay": dict(b=1, t=66, h=1, k=16, v=9, decay="channel", scale=0.5),
    "channel-extreme": dict(b=1, t=40, h=1, k=24, v=16, decay="channel", gates=(0.0, -1e-4, -1.0, -20.0, -100.0)),
    "packed": dict(b=1, t=40, h=2, k=16, v=16, decay="head", cu_seqlens=(0, 1, 1, 18, 40)),
    "packed-channel": dict(b=1, t=36, h=1, k=16, v=12, decay="channel", state=False, cu_seqlens=(0, 17, 18, 36, 36)),
}


def make_inputs(
    generator: torch.Generator,
    b: int,
    t: int,
    h: int,
    k: int,
    v: int,
    decay: str | None = None,
    gates: tuple[float, ...] | None = None,
    scale: float | None = None,
    state: bool = True,
    cu_seqlens: tuple[int, ...] | None = None,
) -> dict[str, Tensor | float]:
    """Arguments of the op by name: floating tensors in float64, absent ones left out. Keys have norm 0.98.

    `decay` is None, "head" or "channel"; `gates` are the only values that log_decay takes.
    """

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    keys = 0.98 * F.normalize(randn(b, t, h, k), dim=-1)  # below 1, so that rounding keeps it there
    inputs = {"q": randn(b, t, h, k), "k": keys, "v": randn(b, t, h, v), "beta": 2 * randn(b, t, h).sigmoid()}
    if decay is not None:
        shape = (b, t, h) if decay == "head" else (b, t, h, k)
        inputs["log_decay"] = draw_log_decay(generator, shape, gates)
    if scale is not None:
        inputs["scale"] = scale
    if state:
        n = b if cu_seqlens is None else len(cu_seqlens) - 1
        inputs["state"] = randn(n, h, k, v)
    if cu_seqlens is not None:
        inputs["cu_seqlens"] = torch.tensor(cu_seqlens, dtype=torch.int32)
    return inputs
