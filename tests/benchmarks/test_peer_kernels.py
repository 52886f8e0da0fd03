"""Our kernels beside the published ones: foreign code is captured as ours is, and the table says what is missing."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from subquad.benchmarks import peer_kernels
from subquad.benchmarks.peer_kernels import DIMS, OURS, Row, document, subjects
from subquad.benchmarks.profile.baselines import FLA
from subquad.benchmarks.profile.foreign import CONFIGS_TRIED, _some
from subquad.kernels import OPS

ROW = Row("short_conv", "width 4", 64, "h100", OURS, "forward", 1, 2, 134_000_000, 67_000_000, 8, 20.04)
HEAD_LINE = json.dumps({"peers": {"fla-core": None}, "environment": {"versions": {"triton": "3.7.1"}}})
# A library as they are: looks at the GPU when imported, enters its device, tunes itself on first use.
LIBRARY = """
import torch, triton, triton.language as tl
assert torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
CONFIGS = [triton.Config(dict(BLOCK=BLOCK), num_warps=w) for BLOCK, w in ((16384, 1), (1024, 4), (512, 1), (256, 2))]

@triton.autotune(configs=CONFIGS, key=["n"])
@triton.jit
def twice_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, 2 * tl.load(x_ptr + offs, mask=offs < n), mask=offs < n)

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.empty(x.shape, device=x.device, dtype=x.dtype)
        with torch.cuda.device(x.device.index):
            twice_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, y, x.numel())
        return y

    @staticmethod
    def backward(ctx, dy):
        return Twice.forward(ctx, dy) + torch.zeros_like(dy)
"""
CAPTURE = """
import json, torch
from subquad.benchmarks.profile import record_passes
from subquad.benchmarks.profile.calls import Call
from subquad.benchmarks.profile.capture import pretend
from subquad.benchmarks.profile.foreign import foreign_code
from subquad.benchmarks.profile.targets import GPUS
with pretend(GPUS["h100"]) as session:
    x = torch.empty(1 << 20, requires_grad=True)
    with foreign_code(session, GPUS["h100"]):
        from library import Twice
        call = Call(lambda: (Twice.apply(x),), {"x": x}, [x])
        record_passes(session, call)
        passes = record_passes(session, call)
found = {name: ([(x.name, x.grid, x.tensors) for x in one.launches], [x.bytes for x in one.helpers])
         for name, one, _ in passes}
print(json.dumps([found, torch.cuda.is_available()]))
"""


def test_foreign_code_is_captured(tmp_path):
    (tmp_path / "library.py").write_text(LIBRARY)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{CAPTURE}"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found, available = json.loads(done.stdout)
    size = 4 << 20
    for name in ("forward", "backward"):
        [(kernel, grid, tensors)], _ = found[name]
        assert kernel == "twice_kernel" and tensors == {"x_ptr": size, "y_ptr": size}
        assert grid == [(1 << 20) // 256, 1, 1]  # most warps fit with the last of the configurations
    assert found["forward"][1] == [] and found["backward"][1] == [size, 3 * size]  # zeros, and a sum of two
    assert not available  # and outside everything is as it was


def test_a_few_configurations_are_tried():
    assert _some(list(range(40)))[0] == 0 and _some(list(range(40)))[-1] == 39
    assert len(_some(list(range(40)))) == CONFIGS_TRIED and _some([1, 2]) == [1, 2]


@pytest.mark.parametrize("dim", DIMS)
def test_every_op_has_its_calls(dim):
    assert {subject.name for _, subject in subjects(dim)} == set(OPS)


def test_the_table_says_what_each_form_needs_and_what_is_missing():
    missing = Row("short_conv", "width 4", 64, "h100", "fla causal_conv1d", "", missing=FLA)
    lines = document([HEAD_LINE, json.dumps([asdict(ROW), asdict(missing)])]).splitlines()
    assert "fla-core not installed; Triton 3.7.1." in lines
    assert lines[-2] == "| short_conv, width 4 | 64 | h100 | **subquad** | forward | 1 | 2 | 134 | 67 | 2.00 | 8 | 20 |"
    assert f"fla causal_conv1d | not installed: `{FLA}` |" in lines[-1]
    assert lines[-1].count("|") == lines[-2].count("|")


def test_the_interpreter_cannot_compile(tmp_path):
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1 turns the compiler off; unset it"):
        peer_kernels.main(folder=tmp_path)


@pytest.mark.parametrize("target, message", [("mi300", "expected such a target, got 'mi300'"), ("h101", "h101")])
def test_a_target_that_peers_do_not_run_on_is_refused(target, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        peer_kernels.main([target], folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    half = tmp_path / "half"
    half.write_text(f"{HEAD_LINE}\n[1]\n[2]\n[3")
    assert peer_kernels._lines_after(HEAD_LINE, half) == ["[1]\n", "[2]\n"]
    assert half.read_text() == f"{HEAD_LINE}\n[1]\n[2]\n"  # the next line is not appended to a torn one
    assert peer_kernels._lines_after("of another version", half) == []
    assert peer_kernels._lines_after(HEAD_LINE, tmp_path / "none") == []
