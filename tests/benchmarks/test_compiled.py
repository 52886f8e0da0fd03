"""The ahead-of-time compiler: it compiles here and now, and the table in the repository is that of the sources."""

import os
import subprocess
import sys

import pytest

from subquad.benchmarks import _compiled_table as table
from subquad.benchmarks._compiled_cases import WIDTHS, cases
from subquad.benchmarks.compiled import DEFAULT_TARGETS, DTYPES, CompiledKernel, compile_all
from subquad.kernels import OPS

COMPILE_A_FEW = """
from subquad.benchmarks.compiled import compile_part
for target in ("cuda:90", "gfx942"):
    for kernel in compile_part("short_conv", target, "bfloat16", (3,)):
        print(kernel.target, kernel.kernel, kernel.failed, kernel.registers, kernel.shared, kernel.num_warps)
"""

COLLECT_PRECISIONS = """
import tempfile, torch
from subquad.benchmarks import compiled
case = next(compiled.cases("long_conv", "float32"))
for target in ("cuda:90", "gfx942"):
    with tempfile.TemporaryDirectory() as cache, compiled._driver(target, cache):
        launches = compiled.collect("long_conv", case, torch.float32)
    print(target, any('"tf32x3"' in launch.specialization for launch in launches))
"""


def compiled(**changes) -> CompiledKernel:
    facts = dict(op="short_conv", kernel="k", case="c", width=4, launch=1, dtype="float32", target="cuda:90")
    facts |= dict(
        num_warps=4, num_stages=2, registers=100, spill=0, shared=1024, error=None, triton="3.7.1", source="0"
    )
    return CompiledKernel(**(facts | changes))


@pytest.fixture(scope="module")
def stored() -> list[CompiledKernel]:
    return table.load()


def run_outside_the_interpreter(script: str) -> list[list[str]]:
    """The words of each line that the script prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_launches_are_those_of_the_target():
    assert run_outside_the_interpreter(COLLECT_PRECISIONS) == [["cuda:90", "True"], ["gfx942", "False"]]


def test_kernels_compile_without_a_gpu():
    lines = run_outside_the_interpreter(COMPILE_A_FEW)
    names = ("short_conv_fwd_kernel", "short_conv_bwd_kernel")
    assert {(target, name) for target, name, *_ in lines} == {(t, n) for t in ("cuda:90", "gfx942") for n in names}
    for _, _, failed, registers, shared, num_warps in lines:
        assert (failed, shared, num_warps) == ("False", "0", "1")
        assert 16 <= int(registers) <= 255


def test_the_interpreter_cannot_compile():
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1 turns the compiler off; unset it"):
        compile_all(("short_conv",))


@pytest.mark.parametrize("names, message", [
    (dict(ops=("conv",)), "unknown op 'conv'; expected one of causal_attention, "),
    (dict(targets=("cuda:70",)), "unknown target 'cuda:70'; expected one of cuda:80, cuda:90, "),
    (dict(dtypes=("float64",)), "unknown dtype 'float64'; expected one of float32, "),
])  # fmt: skip
def test_unknown_names_list_the_known(names, message):
    with pytest.raises(ValueError, match=message):
        compile_all(**names)


@pytest.mark.parametrize("op", OPS)
def test_every_width_and_dtype_has_a_case(op):
    for dtype in DTYPES:
        assert {case.width for case in cases(op, dtype)} == set(WIDTHS[op])


def test_limits():
    assert not compiled(shared=99 * 1024).failed
    assert compiled(shared=99 * 1024 + 1).failed
    assert compiled(shared=65 * 1024, target="gfx942").failed
    assert compiled(error="CompilationError: no").failed


def test_storing_replaces_only_what_was_compiled_anew(tmp_path):
    table.store([compiled(op="long_conv", spill=7), compiled()], tmp_path)
    table.store([compiled(registers=90, error="RuntimeError: no"), compiled(launch=2, target="gfx942")], tmp_path)
    kernels = table.load(tmp_path)
    assert [(kernel.op, kernel.registers) for kernel in kernels] == [
        ("short_conv", 90), ("short_conv", 100), ("long_conv", 100)
    ]  # fmt: skip
    text = (tmp_path / table.TABLE).read_text()
    assert "| short_conv | cuda:90 | 1 | 1 | 0 | 0 | 0 | 1.0 |" in text
    assert "| k #2 | c | 4 | float32 |  | 100 / 0 / 1.0 |" in text
    assert "| long_conv | k | c | 4 | float32 | cuda:90 | 4 | 100 / 7 / 1.0 |" in text


@pytest.mark.parametrize("op", OPS)
def test_stored_table_is_complete(op, stored):
    found = {(kernel.width, kernel.dtype, kernel.target) for kernel in stored if kernel.op == op}
    wanted = {(width, dtype, target) for width in WIDTHS[op] for dtype in DTYPES for target in DEFAULT_TARGETS}
    assert found >= wanted, f"missing: {sorted(wanted - found)}; run: {table.COMMAND}"


def test_every_stored_kernel_compiles_and_fits(stored):
    failed = [(x.op, x.kernel, x.case, x.width, x.dtype, x.target, x.shared, x.error) for x in stored if x.failed]
    assert not failed


def test_readable_table_is_made_from_the_stored_one(stored, tmp_path):
    table.store(stored, tmp_path)
    assert (tmp_path / table.TABLE).read_text() == (table.RESULTS / table.TABLE).read_text()
