"""Tensors of more than 2^31 elements, where an offset of 32 bits goes astray.

A few rows of different values are repeated until the largest tensor is over the limit, and every one of them must give
what the reference gives for those few. Their number is a prime: an offset that is off by a power of two meets another
row. Something flows back into the last rows alone, all of them beyond the limit; so inputs that all rows share have
the gradient of the few as well, and what the other rows get must be zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from subquad.kernels._budget import error_and_budget

from ._evaluation import SHARED, Evaluation, Finding, backend_failures, cast, draw_inputs, draw_outer, evaluate, is_gpu

LIMIT = 1 << 31
ROWS = 7
PIECE = 1 << 24  # elements that are compared at once
SLACK = 1.5  # what kernels keep and the comparison takes, over inputs, results, and what flows through them
MEMORY = 1e9  # bytes in a GB

HEADS = dict(t=32, h=4)
FAR_CASES: dict[str, dict[str, dict]] = {  # sizes of a row; "packed" rows lie behind one another in time
    "causal_attention": {
        "far-values": HEADS | dict(k=16, v=128),
        "far-keys": HEADS | dict(k=128, v=16),
        "far-tokens-packed": HEADS | dict(k=16, v=128, packed=True),
        "far-cache": dict(t=1, s=32, h=4, k=128, v=128),
    },
    "linear_attention": {
        "far-values": HEADS | dict(k=16, v=128, decay="head", state=False),
        "far-keys": HEADS | dict(k=128, v=16, decay="channel", state=False),
        "far-tokens-packed": HEADS | dict(k=16, v=128, decay="head", state=False, packed=True),
        "far-states": dict(t=1, h=4, k=64, v=64, decay="head"),
    },
    "polynomial_attention": {
        "far-values": HEADS | dict(k=8, v=128, state=False),
        "far-tokens-packed": HEADS | dict(k=8, v=128, state=False, packed=True),
        "far-states": dict(t=1, h=4, k=8, v=128),
    },
    "delta_rule": {
        "far-values": HEADS | dict(k=16, v=128, decay="head", state=False),
        "far-keys": HEADS | dict(k=128, v=16, decay="channel", state=False),
        "far-tokens-packed": HEADS | dict(k=16, v=128, state=False, packed=True),
        "far-states": dict(t=1, h=4, k=64, v=64, decay="head"),
    },
    "generalized_delta_rule": {
        "far-values": HEADS | dict(k=16, v=128, state=False),
        "far-keys": HEADS | dict(k=128, v=8, state=False),
        "far-tokens-packed": HEADS | dict(k=16, v=128, state=False, packed=True),
        "far-states": dict(t=1, h=4, k=64, v=64),
    },
    "selective_scan": {
        "far-rows": dict(t=32, d=512, m=2, state=False),
        "far-tokens-packed": dict(t=32, d=512, m=2, state=False, packed=True),
        "far-states": dict(t=1, d=512, m=16),
    },
    "linear_recurrence": {
        "far-rows": dict(t=32, d=512, state=False),
        "far-tokens-packed": dict(t=32, d=512, state=False, packed=True),
    },
    "short_conv": {
        "far-rows": dict(t=32, d=512, w=4, activation="silu", state=False),
        "far-tokens-packed": dict(t=32, d=512, w=4, activation="silu", state=False, packed=True),
    },
    "long_conv": {"far-rows": dict(t=32, d=512, l=32)},
}


def check_far(
    op: str,
    backend: str,
    dtype: torch.dtype,
    device: torch.device,
    only: str = "",
    on_case: Callable[[str], None] = lambda name: None,
) -> Finding:
    """Run the op's far cases, or the one of a name, each if it fits into the memory that is free."""
    finding = Finding(op, backend, dtype, far=True)
    for name, dims in FAR_CASES[op].items():
        if only not in ("", name):
            continue
        on_case(name)
        case = FarCase(op, dtype, **dims)
        free = free_bytes(device)
        if case.num_bytes > free:
            needs, has = case.num_bytes / MEMORY, free / MEMORY
            finding.skipped[name] = f"needs about {needs:.1f} GB of memory, {has:.1f} GB are free"
            continue
        try:
            case.run(finding, name, backend, device)
            finding.num_cases += 1
        except torch.OutOfMemoryError as error:
            finding.skipped[name] = f"out of memory, though {free / MEMORY:.1f} GB were free: {error}".partition("\n")[
                0
            ]
        except backend_failures() as error:
            finding.fail(name, error)
            break
    return finding


def free_bytes(device: torch.device) -> float:
    """Of the GPU's memory, what PyTorch keeps for later use included. Without one, nobody counts."""
    if not is_gpu(device):
        return float("inf")
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


class FarCase:
    """One call of an op whose largest tensor has more elements than LIMIT.

    Args:
        packed: the rows are sequences that lie behind one another in time, instead of a batch.
        dims: sizes of a row, as the op's make_inputs takes them.
    """

    def __init__(self, op: str, dtype: torch.dtype, packed: bool = False, **dims):
        self._op, self._dtype, self._packed, self._t = op, dtype, packed, dims["t"]
        self._few = draw_inputs(op, dtype, b=ROWS, **dims)
        self._exact = evaluate(op, "reference", cast(self._few, torch.float64), dtype)
        self._rounded = evaluate(op, "reference", self._few, dtype)
        results = [x for name, x in self._rounded.items() if not self._is_shared(name)]
        row = max(x.numel() for x in results) // ROWS
        self.copies = LIMIT // (row * ROWS) + 2  # of the few rows: all of the last are beyond the limit
        num_bytes = sum(x.numel() * x.element_size() for x in results)
        self.num_bytes = int(2 * SLACK * num_bytes * self.copies)  # inputs are as large as gradients, so twice

    def run(self, finding: Finding, case: str, backend: str, device: torch.device) -> None:
        eps = torch.finfo(self._dtype).eps
        found = Evaluation(self._op, backend, self._inputs(device), self._dtype, self._outer(device)).run()
        for name, exact in self._exact.items():
            actual = found.pop(name)
            if not self._is_shared(name):
                actual = actual.reshape(self.copies, *exact.shape)
                if name.startswith("d"):
                    stray = farthest(actual[:-1], torch.zeros_like(exact)).abs().max().item()
                    finding.note(f"{name} of rows into which nothing flows", case, stray, 0.0)
                    actual = actual[-1:]
                actual = farthest(actual, exact)
            finding.note(name, case, *error_and_budget(actual.cpu(), exact, self._rounded[name], eps))

    def _inputs(self, device: torch.device) -> dict:
        inputs = {name: self._repeated(name, x) for name, x in cast(self._few, device).items()}
        if self._packed:
            borders = torch.arange(self.copies * ROWS + 1, device=device, dtype=torch.int64) * self._t
            inputs["cu_seqlens"] = borders.to(torch.int32)
        return inputs

    def _repeated(self, name: str, x):
        if not isinstance(x, Tensor) or self._is_shared(name):
            return x
        x = x.repeat(self.copies, *[1] * (x.ndim - 1))
        return x.flatten(0, 1)[None] if self._packed and name != "state" else x

    def _outer(self, device: torch.device) -> list[Tensor]:
        """Zero but for the last of the copies."""
        results = {name: self._rounded[name] for name in ("y", "state") if name in self._rounded}
        drawn = draw_outer(tuple(results.values()), self._dtype)
        outer = []
        for (name, y), few in zip(results.items(), drawn, strict=True):
            x = torch.zeros(self.copies, *y.shape, dtype=y.dtype, device=device)
            x[-1] = few
            x = x.flatten(0, 1)
            outer.append(x.flatten(0, 1)[None] if self._packed and name != "state" else x)
        return outer

    @staticmethod
    def _is_shared(name: str) -> bool:
        return name in SHARED or name.removeprefix("d") in SHARED


def farthest(copies: Tensor, exact: Tensor) -> Tensor:
    """For each element, of all its copies the one that is farthest from what it should be.

    Args:
        copies: (n, ...) on any device.
        exact: (...) in float64.
    """
    exact = exact.to(copies.device)
    farthest, distance = exact.clone(), torch.zeros_like(exact)
    for piece in copies.split(max(1, PIECE // max(1, exact.numel()))):
        piece = piece.double()
        off, at = (piece - exact).abs().nan_to_num(nan=float("inf")).max(dim=0)
        worse = off > distance
        farthest = torch.where(worse, piece.gather(0, at[None])[0], farthest)
        distance = torch.where(worse, off, distance)
    return farthest
