"""Launch configurations: the row of the GPU at hand, what was tuned there before it, what is forced before all."""

import json

import pytest
import torch

from subquad.kernels import _configs, _target
from subquad.kernels._configs import ConfigTable, forced, tuned_key

ROWS = {
    ("cuda", "half", 64): dict(BLOCK=32),
    ("cuda", "half", 256): dict(BLOCK=16),
    ("cuda", "float32", 256): dict(BLOCK=8),
    ("sm_90", "half", 128): dict(BLOCK=128),
    ("sm_90", "float16", 128): dict(BLOCK=64),
    ("hip", "half", 256): dict(BLOCK=256),
}


@pytest.fixture
def table() -> ConfigTable:
    return ConfigTable("some_kernel", ROWS, {"BLOCK": (8, 16)})


def on(architecture: str, monkeypatch) -> None:
    monkeypatch.setattr(_target, "architecture", lambda: architecture)


@pytest.mark.parametrize("architecture, dtype, width, block", [
    ("sm_90", torch.bfloat16, 64, 128),
    ("sm_90", torch.float16, 128, 64),
    ("sm_90", torch.bfloat16, 129, 16),
    ("sm_90", torch.float32, 64, 8),
    ("sm_80", torch.bfloat16, 64, 32),
    ("cuda", torch.float16, 65, 16),
    ("interpreter", torch.float16, 64, 32),
    ("gfx942", torch.bfloat16, 16, 256),
])  # fmt: skip
def test_the_nearest_row_is_taken(table, architecture, dtype, width, block, monkeypatch):
    on(architecture, monkeypatch)
    assert table.pick(dtype, width) == dict(BLOCK=block)


def test_a_row_that_is_missing_is_our_own_mistake(table, monkeypatch):
    on("gfx942", monkeypatch)
    with pytest.raises(AssertionError, match=r"some_kernel: no row for gfx942, torch.float32, width 16"):
        table.pick(torch.float32, 16)


def test_what_was_tuned_on_this_gpu_comes_first(table, tmp_path, monkeypatch):
    on("sm_90", monkeypatch)
    stored = {"H100": {tuned_key("some_kernel", torch.bfloat16, 64): dict(BLOCK=1)}, "other": {}}
    (tmp_path / "tuned.json").write_text(json.dumps(stored))
    monkeypatch.setattr(_configs, "TUNED", tmp_path / "tuned.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    assert table.pick(torch.bfloat16, 64) == dict(BLOCK=1)
    assert table.pick(torch.bfloat16, 128) == dict(BLOCK=128)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "other")
    table.forget()
    assert table.pick(torch.bfloat16, 64) == dict(BLOCK=128)


def test_forced_before_all_and_only_inside(table, monkeypatch):
    on("sm_90", monkeypatch)
    with forced("some_kernel", dict(BLOCK=2)):
        assert table.pick(torch.float32, 16) == dict(BLOCK=2)
    assert table.pick(torch.float32, 16) == dict(BLOCK=8)


@pytest.mark.parametrize("arch, name", [(80, "sm_80"), (86, "cuda"), (90, "sm_90"), (103, "sm_100"), (120, "cuda")])
def test_families(arch, name, monkeypatch):
    monkeypatch.setattr(_target, "_has_target", lambda: True)
    monkeypatch.setattr(_target, "_target", lambda: _target.triton.backends.compiler.GPUTarget("cuda", arch, 32))
    assert _target.architecture() == name
