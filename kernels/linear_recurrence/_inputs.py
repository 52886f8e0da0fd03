"""Inputs that exercise linear_recurrence; the contract test and the benchmarks draw from here."""

import torch
from torch import Tensor

from .._drawing import draw_log_decay

CASES = {
    "one-token": dict(b=2, t=1, d=7),
    "ragged": dict(b=2, t=37, d=19),
    "from-zero": dict(b=1, t=69, d=40, state=False),
    "extreme": dict(b=1, t=70, d=24, gates=(0.0, -1e-4, -1.0, -20.0, -100.0)),
    "packed": dict(b=1, t=41, d=16, cu_seqlens=(0, 1, 1, 7, 41)),
}


def make_inputs(
    generator: torch.Generator,
    b: int,
    t: int,
    d: int,
    gates: tuple[float, ...] | None = None,
    state: bool = True,
    cu_seqlens: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    """Arguments of the op by name: tensors in float64, absent ones left out. `gates`: all values of log_decay."""

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    log_decay = draw_log_decay(generator, (b, t, d), gates)
    inputs = {"x": randn(b, t, d), "log_decay": log_decay}
    if state:
        inputs["state"] = randn(b if cu_seqlens is None else len(cu_seqlens) - 1, d)
    if cu_seqlens is not None:
        inputs["cu_seqlens"] = torch.tensor(cu_seqlens, dtype=torch.int32)
    return inputs
