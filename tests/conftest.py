"""What every test runs under: Triton's interpreter, one thread a worker, and memory that is poisoned before use."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it once, when it is first imported

import pytest
import torch

torch.set_num_threads(1)

POISONED = ("empty", "empty_like", "empty_strided")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory(monkeypatch):
    """Fresh memory holds NaN, so an element that a kernel forgets to write is seen."""

    def poison(x):
        return x.fill_(float("nan")) if x.is_floating_point() else x

    for name in POISONED:
        original = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _make=original, **k: poison(_make(*a, **k)))
    original_new = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: poison(original_new(self, *a, **k)))
