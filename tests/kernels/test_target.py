"""Choices that depend on the GPU: asked of Triton's target, so that one which is not there gives the same answers."""

from contextlib import nullcontext

import pytest
import torch
from triton.backends.compiler import GPUTarget

from subquad.kernels import _autograd, _target
from subquad.kernels._tiles import precision
from subquad.kernels.causal_attention._triton._configs import BACKWARD
from subquad.kernels.long_conv._triton import _precision
from subquad.kernels.short_conv import short_conv

TARGETS = {
    "a100": (GPUTarget("cuda", 80, 32), True, 16),
    "h100": (GPUTarget("cuda", 90, 32), True, 32),
    "b200": (GPUTarget("cuda", 100, 32), True, 32),
    "mi300": (GPUTarget("hip", "gfx942", 64), False, 16),
}


@pytest.mark.parametrize("name", TARGETS)
def test_what_a_target_can_do(name, monkeypatch):
    target, knows_tf32, rows_of_queries = TARGETS[name]
    monkeypatch.setattr(_target, "_has_target", lambda: True)
    monkeypatch.setattr(_target, "_target", lambda: target)
    assert _target.knows_tf32() is knows_tf32
    assert BACKWARD.row(_target.architecture(), torch.bfloat16, 128)["BLOCK_M"] == rows_of_queries
    assert precision() == ("tf32" if knows_tf32 else "ieee")
    assert _precision(torch.float32) == ("tf32x3" if knows_tf32 else "ieee")


def test_the_interpreter_is_no_gpu():
    assert not _target.knows_tf32() and _target.architecture() == _target.INTERPRETER


def test_ops_run_on_the_device_of_their_first_tensor(monkeypatch):
    x, seen = torch.ones(1, 3, 2, requires_grad=True), []
    monkeypatch.setattr(_autograd.torch.cuda, "device_of", lambda x: seen.append(x.shape) or nullcontext())
    short_conv(x, torch.ones(2, 2), backend="torch")[0].sum().backward()
    assert seen == [x.shape, x.shape]  # forward, backward
