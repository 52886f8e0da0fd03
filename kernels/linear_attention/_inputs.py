"""Inputs that exercise linear_attention; the contract test and the benchmarks draw from here."""

import torch
from torch import Tensor

from .._drawing import draw_log_decay

CASES = {
    "one-token": dict(b=2, t=1, h=2, k=8, v=5, decay="head"),
    "one-token-channel": dict(b=1, t=1, h=1, k=6, v=16, decay="channel", gates=(-1.0, -100.0), normalize=True),
    "plain": dict(b=2, t=37, h=2, k=16, v=24, state=False),
    "plain-two-chunks": dict(b=1, t=69, h=1, k=12, v=16),
    "head-decay": dict(b=1, t=67, h=2, k=20, v=16, decay="head"),
    "head-extreme": dict(b=1, t=70, h=1, k=16, v=40, decay="head", gates=(0.0, -1e-4, -1.0, -20.0, -100.0)),
    "channel-decay": dict(b=1, t=66, h=2, k=16, v=9, decay="channel", scale=0.5),
    "channel-extreme": dict(b=1, t=50, h=1, k=24, v=16, decay="channel", gates=(0.0, -1e-4, -1.0, -20.0, -100.0)),
    "normalized": dict(b=1, t=35, h=2, k=16, v=16, normalize=True),
    "normalized-head": dict(b=2, t=33, h=1, k=17, v=8, decay="head", normalize=True, state=False),
    "normalized-channel": dict(b=1, t=34, h=1, k=16, v=20, decay="channel", normalize=True),
    "packed": dict(b=1, t=40, h=2, k=16, v=16, decay="head", cu_seqlens=(0, 1, 1, 18, 40)),
    "packed-plain": dict(b=1, t=30, h=1, k=9, v=16, normalize=True, cu_seqlens=(0, 0, 19, 30)),
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
    normalize: bool = False,
    state: bool = True,
    cu_seqlens: tuple[int, ...] | None = None,
) -> dict[str, Tensor | float | bool]:
    """Arguments of the op by name: floating tensors in float64, absent ones left out.

    `decay` is None, "head" or "channel"; `gates` are the only values that log_decay takes. With `normalize` the
    queries, keys and the state are positive, as after a feature map.
    """

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def feature(*shape):
        return randn(*shape).abs() + 0.1 if normalize else randn(*shape)

    inputs = {"q": feature(b, t, h, k), "k": feature(b, t, h, k), "v": randn(b, t, h, v), "normalize": normalize}
    if decay is not None:
        shape = (b, t, h) if decay == "head" else (b, t, h, k)
        inputs["log_decay"] = draw_log_decay(generator, shape, gates)
    if scale is not None:
        inputs["scale"] = scale
    if state:
        n = b if cu_seqlens is None else len(cu_seqlens) - 1
        inputs["state"] = feature(n, h, k, v + normalize)
    if cu_seqlens is not None:
        inputs["cu_seqlens"] = torch.tensor(cu_seqlens, dtype=torch.int32)
    return inputs
