"""Launch configurations: the row of the GPU at hand, what was tuned there before it, what is forced before all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from triton.backends.driver import GPUDriver
from triton.backends.nvidia.driver import CudaDriver

from subquad.benchmarks._without_device import DriverWithoutDevice
from subquad.kernels import _configs, _target
from subquad.kernels._configs import Asked, ConfigTable, Tuned, forced, recorded, store_tuned

VERSION = triton.__version__
ASKED = Asked("some_kernel", torch.bfloat16, 64)

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


def test_what_is_asked_is_read_from_its_text():
    asked = Asked("some_kernel, decay a head", torch.bfloat16, 64)
    assert Asked.read(str(asked)) == asked


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


@pytest.fixture
def h100(tmp_path, monkeypatch) -> Path:
    """A process with a GPU; the file of tuned configurations."""
    on("sm_90", monkeypatch)
    monkeypatch.setattr(_target, "gpu_name", lambda: "H100")
    monkeypatch.setattr(_configs, "TUNED", tmp_path / "cache" / "tuned.json")
    return _configs.TUNED


def tuned(**changes) -> Tuned:
    return Tuned(**(dict(config=dict(BLOCK=16), instead_of=dict(BLOCK=128), ratio=0.9, triton=VERSION) | changes))


def test_what_was_tuned_on_this_gpu_comes_first(table, h100, monkeypatch):
    store_tuned("H100", ASKED, tuned())
    assert table.pick(torch.bfloat16, 64) == dict(BLOCK=16)
    assert table.pick(torch.bfloat16, 128) == dict(BLOCK=128)
    monkeypatch.setattr(_target, "gpu_name", lambda: "another")
    assert table.pick(torch.bfloat16, 64) == dict(BLOCK=128)
    monkeypatch.setattr(_target, "gpu_name", lambda: None)  # compiled for a GPU that is not there
    assert table.pick(torch.bfloat16, 64) == dict(BLOCK=128)


@pytest.mark.parametrize("changes", [
    dict(triton="3.0.0"),
    dict(instead_of=dict(BLOCK=64)),
    dict(config=dict(BLOCK=48)),
    dict(config=dict(BLOCK=16, num_warps=4)),
], ids=["another Triton", "another row", "no choice", "no keyword"])  # fmt: skip
def test_what_is_out_of_date_is_passed_over(table, h100, changes):
    store_tuned("H100", ASKED, tuned(**changes))
    assert table.pick(torch.bfloat16, 64) == dict(BLOCK=128)


def test_a_gpu_can_be_forgotten(table, h100):
    store_tuned("H100", ASKED, tuned())
    store_tuned("A100", ASKED, tuned())
    assert _configs.forget_tuned("H100") == 1 and _configs.forget_tuned("H100") == 0
    assert table.pick(torch.bfloat16, 64) == dict(BLOCK=128)
    assert set(_configs.read_tuned()) == {"A100"}


def test_a_damaged_file_is_named(table, h100):
    h100.parent.mkdir()
    for content in ("{", "[]", '{"H100": {"x": {"config": {}}}}'):
        h100.write_text(content)
        _configs._read.cache_clear()
        with pytest.raises(RuntimeError, match=r"tuned.json: not what `subquad tune` writes.*remove the file"):
            table.pick(torch.bfloat16, 64)


def test_a_kill_while_writing_leaves_what_was_there(table, h100, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    store_tuned("H100", ASKED, tuned())
    before = h100.read_text()
    monkeypatch.setattr(_configs.os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        store_tuned("H100", Asked("other", torch.float32, 16), tuned())
    assert h100.read_text() == before


STORE = """
import sys; from pathlib import Path; import torch
from subquad.kernels import _configs
from subquad.kernels._configs import Asked, Tuned
_configs.TUNED = Path(sys.argv[1])
for width in range(20):
    _configs.store_tuned(sys.argv[2], Asked("some_kernel", torch.float32, width), Tuned({}, {}, 0.5, "3"))
"""


def test_processes_that_store_at_once_lose_nothing(h100):
    running = [subprocess.Popen([sys.executable, "-c", STORE, str(h100), gpu]) for gpu in ("a", "b")]
    assert [process.wait() for process in running] == [0, 0]
    _configs._read.cache_clear()
    assert {gpu: len(rows) for gpu, rows in _configs.read_tuned().items()} == {"a": 20, "b": 20}


def test_forced_before_all_and_only_inside(table, monkeypatch):
    on("sm_90", monkeypatch)
    with forced("some_kernel", dict(BLOCK=2)):
        assert table.pick(torch.float32, 16) == dict(BLOCK=2)
    assert table.pick(torch.float32, 16) == dict(BLOCK=8)


def test_forced_for_one_question_only(table, monkeypatch):
    on("sm_90", monkeypatch)
    with forced(ASKED, dict(BLOCK=2)):
        assert table.pick(torch.bfloat16, 64) == dict(BLOCK=2)
        assert table.pick(torch.float16, 64) == dict(BLOCK=64)


def test_recorded_in_order_and_only_inside(table, monkeypatch):
    on("sm_90", monkeypatch)
    with recorded() as seen, forced("some_kernel", dict(BLOCK=2)):
        table.pick(torch.float32, 16)
        table.pick(torch.bfloat16, 64)
    table.pick(torch.bfloat16, 128)
    assert list(seen.items()) == [(Asked("some_kernel", torch.float32, 16), table), (ASKED, table)]


def test_a_gpu_that_is_only_compiled_for_has_no_name(monkeypatch):
    """So what is modelled or checked for an H100 is the table's, also on a machine whose own H100 is tuned."""
    monkeypatch.setattr(_target, "_has_target", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(_target, "_name_of", lambda device: f"GPU {device}")
    drivers = {GPUDriver.__new__(CudaDriver): "GPU 0", DriverWithoutDevice("cuda:90"): None}
    for driver, name in drivers.items():
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)
        assert _target.gpu_name() == name


def test_the_interpreter_has_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _target.gpu_name() is None


@pytest.mark.parametrize("arch, name", [(80, "sm_80"), (86, "cuda"), (90, "sm_90"), (103, "sm_100"), (120, "cuda")])
def test_families(arch, name, monkeypatch):
    monkeypatch.setattr(_target, "_has_target", lambda: True)
    monkeypatch.setattr(_target, "_target", lambda: _target.triton.backends.compiler.GPUTarget("cuda", arch, 32))
    assert _target.architecture() == name
