"""Inputs that exercise selective_scan; the contract test and the benchmarks draw from here."""

import torch
import torch.nn.functional as F
from torch import Tensor

CASES = {
    "one-token": dict(b=2, t=1, d=7, m=4),
    "ragged": dict(b=2, t=37, d=9, m=5),
    "from-zero": dict(b=1, t=50, d=20, m=16, state=False, skip=False),
    "extreme": dict(b=1, t=40, d=12, m=3, steps=(0.0, 1e-4, 1.0, 20.0, 100.0)),
    "packed": dict(b=1, t=41, d=16, m=4, cu_seqlens=(0, 1, 1, 7, 41)),
}


def make_inputs(
    generator: torch.Generator,
    b: int,
    t: int,
    d: int,
    m: int,
    steps: tuple[float, ...] | None = None,
    skip: bool = True,
    state: bool = True,
    cu_seqlens: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    """Arguments of the op by name: tensors in float64, absent ones left out. `steps`: all values of dt; then x is
    small, for dt multiplies it."""

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, dt = randn(b, t, d), F.softplus(randn(b, t, d) - 1.0)
    if steps is not None:
        dt = torch.tensor(steps, dtype=torch.float64)[torch.randint(len(steps), (b, t, d), generator=generator)]
        x = x / (1 + dt)
    inputs = {"x": x, "dt": dt, "A": -randn(d, m).exp(), "B": randn(b, t, m), "C": randn(b, t, m)}
    if skip:
        inputs["D"] = randn(d)
    if state:
        inputs["state"] = randn(b if cu_seqlens is None else len(cu_seqlens) - 1, d, m)
    if cu_seqlens is not None:
        inputs["cu_seqlens"] = torch.tensor(cu_seqlens, dtype=torch.int32)
    return inputs
