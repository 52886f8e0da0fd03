"""`subquad check`: right ops pass, a broken one fails, and the report holds what a reader needs."""

import pytest
import torch

from subquad.benchmarks import check
from subquad.kernels.short_conv import _inputs, _torch

CASES = {"packed": dict(b=1, t=9, d=4, w=3, cu_seqlens=(0, 4, 4, 9), activation="silu")}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(_inputs, "CASES", CASES)
    monkeypatch.setattr(check, "INTERPRET", False)


def test_right_op_passes(capsys):
    assert check.run_check(ops=("short_conv",), device="cpu") == 0
    shown = capsys.readouterr().out
    assert "short_conv, forward and backward; cases: 1" in shown
    for word in ("float64", "float32", "bfloat16", "float16", f"torch {torch.__version__}", "everything within budget"):
        assert word in shown
    assert "OVER" not in shown


def test_interpreted_kernels_are_checked_too(monkeypatch, capsys):
    monkeypatch.setattr(check, "INTERPRET", True)
    assert check.run_check(ops=("short_conv",), device="cpu") == 0
    assert "interpreter" in capsys.readouterr().out


def test_wrong_result_fails(monkeypatch, capsys):
    right = _torch.short_conv
    monkeypatch.setattr(_torch, "short_conv", lambda *inputs: tuple(1.001 * x for x in right(*inputs)))
    assert check.run_check(ops=("short_conv",), device="cpu") == 1
    assert "OVER" in capsys.readouterr().out


def test_wrong_gradient_fails(monkeypatch):
    right = _torch.short_conv

    def skewed(x, weight, *rest):
        y, state = right(x, weight, *rest)
        zero = (weight - weight.detach()).sum()  # no part of the value, but of the gradient
        return y + zero.to(y.dtype), state

    monkeypatch.setattr(_torch, "short_conv", skewed)
    finding = check.check_op("short_conv", "torch", torch.float32, torch.device("cpu"))
    assert not finding.passed
    assert finding.where == "dweight, packed"


def test_an_op_that_raises_fails_and_says_why(monkeypatch, capsys):
    def refuse(*inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(_torch, "short_conv", refuse)
    assert check.run_check(ops=("short_conv",), device="cpu") == 1
    shown = capsys.readouterr().out
    assert "FAILS" in shown
    assert "packed: RuntimeError: out of memory" in shown


def test_nan_fails(monkeypatch):
    monkeypatch.setattr(_torch, "short_conv", lambda x, *rest: (x * float("nan"), torch.zeros(3, 2, 4) + 0 * x.sum()))
    assert not check.check_op("short_conv", "torch", torch.float32, torch.device("cpu")).passed


def test_a_repeat_that_differs_fails():
    finding = check.Finding("short_conv", "triton", torch.float32, unequal=1)
    assert not finding.passed


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="check: unknown op 'conv'; expected some of causal_attention, "):
        check.run_check(ops=("conv",))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="check: device 'cuda' is not there; PyTorch sees no GPU"):
            check.run_check(device="cuda")
