"""Peak memory of a forward and backward pass in PyTorch: a small multiple of what nobody can spare, linear in t."""

import math

import pytest
import torch
from torch import Tensor

from subquad.benchmarks.timing import peak_bytes

from .contract import call, cast, is_real, make_inputs

CHUNK = 64
HEADS = dict(b=1, h=4, k=64, v=64, state=False)
CHANNELS = dict(b=1, d=256, state=False)
FORMS = {
    "linear_attention": ("linear_attention", HEADS),
    "linear_attention-head": ("linear_attention", HEADS | dict(decay="head")),
    "linear_attention-channel": ("linear_attention", HEADS | dict(decay="channel")),
    "delta_rule": ("delta_rule", HEADS),
    "delta_rule-head": ("delta_rule", HEADS | dict(decay="head")),
    "delta_rule-channel": ("delta_rule", HEADS | dict(decay="channel")),
    "generalized_delta_rule": ("generalized_delta_rule", HEADS),
    "selective_scan": ("selective_scan", CHANNELS | dict(m=16)),
    "linear_recurrence": ("linear_recurrence", CHANNELS),
}


def measured_and_needed(op: str, dims: dict) -> tuple[int, int]:
    """Peak bytes of both passes over the inputs; bytes of inputs, outputs, their gradients, and states of chunks."""
    inputs = cast(make_inputs(op, dims), torch.float32)
    leaves = {name: x.requires_grad_() if is_real(x) else x for name, x in inputs.items()}

    def run() -> list[Tensor]:
        y, state = call(op, "torch", leaves)
        return [y, state, *torch.autograd.grad(y.sum(), [x for x in leaves.values() if is_real(x)])]

    y, state, *grads = run()
    states = math.ceil(dims["t"] / CHUNK) * state.nbytes
    given = sum(x.nbytes for x in leaves.values() if is_real(x))
    made = 2 * y.nbytes + state.nbytes + sum(dx.nbytes for dx in grads) + states
    return given + peak_bytes(run, y.device), given + made


@pytest.mark.parametrize("form", FORMS)
def test_peak_memory(form):
    op, dims = FORMS[form]
    (short, _), (long, needed) = (measured_and_needed(op, dims | dict(t=t)) for t in (2048, 4096))
    assert long <= 1.5 * needed  # measured up to 1.32
    assert long <= 2.05 * short
