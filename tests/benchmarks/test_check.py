"""`subquad check`: right ops pass, a broken one fails, and the report holds what a reader needs; also on a GPU that is
made up, where tensors count as far beyond a few elements."""

import pytest
import torch
import triton
import triton.language as tl

from subquad.benchmarks import _check_report, _evaluation, _far_cases, check
from subquad.benchmarks._far_cases import FAR_CASES, check_far
from subquad.kernels import OPS, _dispatch
from subquad.kernels.short_conv import _inputs, _torch, _triton, short_conv

CPU = torch.device("cpu")

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
    assert (finding.name, finding.where) == ("dweight", "packed")


def test_an_op_that_raises_fails_and_says_why(monkeypatch, capsys):
    def refuse(*inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(_torch, "short_conv", refuse)
    assert check.run_check(ops=("short_conv",), device="cpu") == 1
    shown = capsys.readouterr().out
    assert "FAILS" in shown
    assert "- short_conv, torch, float64, packed: RuntimeError: out of memory; again: `subquad check" in shown


def test_nan_fails(monkeypatch):
    monkeypatch.setattr(_torch, "short_conv", lambda x, *rest: (x * float("nan"), torch.zeros(3, 2, 4) + 0 * x.sum()))
    assert not check.check_op("short_conv", "torch", torch.float32, torch.device("cpu")).passed


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="check: unknown op 'conv'; expected some of causal_attention, "):
        check.run_check(ops=("conv",))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="check: device 'cuda' is not there; PyTorch sees no GPU"):
            check.run_check(device="cuda")
    with pytest.raises(
        ValueError, match="check: no case 'pakked'; expected one of packed, far-rows, far-tokens-packed"
    ):
        check.run_check(ops=("short_conv",), device="cpu", case="pakked")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The CPU counts as a GPU of 1 GB on which 4 runs must agree; our kernels are PyTorch's."""
    monkeypatch.setattr(_triton, "short_conv", _torch.short_conv)
    monkeypatch.setattr(_dispatch, "INTERPRET", True)
    for module in (check, _check_report, _far_cases):
        monkeypatch.setattr(module, "is_gpu", lambda device: True)
    monkeypatch.setattr(check, "REPEATS", 4)
    monkeypatch.setitem(check.GPU_CASES, "short_conv", {"busy": dict(b=1, t=70, d=8, w=2)})
    monkeypatch.setitem(check.DTYPES, "torch", (torch.float32,))
    monkeypatch.setitem(check.DTYPES, "triton", (torch.float32,))
    monkeypatch.setattr(check, "FAR_DTYPE", torch.float32)
    monkeypatch.setattr(_far_cases, "LIMIT", 1000)
    far = {"far-rows": dict(t=9, d=8, w=3, activation="silu"), "far-tokens-packed": dict(t=9, d=8, w=3, packed=True)}
    monkeypatch.setitem(FAR_CASES, "short_conv", far)
    free = {"bytes": 10**9}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["bytes"], 10**9))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    properties = type("Properties", (), {"total_memory": 10**9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    (tmp_path / "version").write_text("NVRM version: 570.1\nGCC version: 12\n")
    monkeypatch.setattr(_check_report, "DRIVERS", (tmp_path / "absent", tmp_path / "version"))
    return free


def report_of(capsys, code: int, **options) -> str:
    assert check.run_check(ops=("short_conv",), device="cpu", **options) == code
    return capsys.readouterr().out


def test_a_gpu_gets_more_cases_repeats_and_far_tensors(gpu, capsys):
    shown = report_of(capsys, 0)
    assert "## subquad check: everything within budget" in shown and "cases: 2" in shown
    assert "| short_conv | triton | float32 | 2 |" in shown and "| 4, equal | ok |" in shown
    assert "### beyond 2^31 elements" in shown
    assert "- device: cpu, compute capability 9.0, 1 GB" in shown and "- driver: NVRM version: 570.1\n" in shown
    assert "skipped" not in shown and "failures" not in shown


def test_one_case_alone(gpu, capsys):
    shown = report_of(capsys, 0, case="busy")
    assert "cases: 1" in shown and "busy" in shown and "packed" not in shown and "2^31" not in shown
    shown = report_of(capsys, 0, case="far-rows")
    assert shown.count("| short_conv |") == 1 and "far-rows" in shown


def test_a_far_case_that_does_not_fit_is_skipped_and_says_so(gpu, monkeypatch, capsys):
    gpu["bytes"] = 1000
    shown = report_of(capsys, 0)
    assert "skipped: short_conv, triton, float32, far-rows: needs about 0.0 GB of memory, 0.0 GB are free" in shown
    gpu["bytes"] = 10**9

    def overflow(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")

    monkeypatch.setattr(_far_cases.FarCase, "run", overflow)
    shown = report_of(capsys, 0)
    assert "far-rows: out of memory, though 1.0 GB were free: CUDA out of memory. Tried to allocate 9 GiB\n" in shown


def spoil(monkeypatch, spoiled):
    """Let `spoiled(y, number of the call)` change what our kernels give."""
    right, calls = _triton.short_conv, []

    def wrong(*inputs):
        y, state = right(*inputs)
        calls.append(1)
        return spoiled(y, len(calls)), state

    monkeypatch.setattr(_triton, "short_conv", wrong)


def test_a_repeat_that_differs_fails(gpu, monkeypatch, capsys):
    spoil(monkeypatch, lambda y, call: y + (call == 3) * 1e-7)
    shown = report_of(capsys, 1)
    assert "| 4, 1 differ | DIFFERS |" in shown
    again = "`subquad check --ops short_conv --device cpu --case packed`"
    assert f"- short_conv, triton, float32, packed: 1 of 4 runs gave other bits than the first; again: {again}" in shown


def test_bits_of_nan_and_of_zeros_are_compared():
    x = torch.tensor([float("nan"), 0.0], dtype=torch.bfloat16)
    assert torch.equal(_evaluation.bits(x), _evaluation.bits(x.clone()))
    assert not torch.equal(_evaluation.bits(x), _evaluation.bits(x * torch.tensor([1.0, -1.0], dtype=x.dtype)))


def test_after_an_invalid_access_nothing_else_is_run(gpu, monkeypatch, capsys):
    def die(y, call):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    spoil(monkeypatch, die)
    shown = report_of(capsys, 1)
    assert "short_conv, triton, float32, packed: AcceleratorError: CUDA error: an illegal memory access" in shown
    assert "not run, since the GPU was lost in short_conv, triton, packed" in shown


def test_a_case_that_is_out_of_memory_is_skipped(gpu, monkeypatch, capsys):
    def overflow(y, call):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    spoil(monkeypatch, overflow)
    assert "skipped: short_conv, triton, float32, busy: out of memory: CUDA out of memory." in report_of(capsys, 0)


@pytest.mark.parametrize("op", OPS)
def test_far_cases_hold_for_what_is_right(op, monkeypatch):
    """At their real rows, repeated a few times."""
    monkeypatch.setattr(_far_cases, "LIMIT", 1 << 18)
    finding = check_far(op, "torch", torch.float32, CPU)
    assert finding.passed and finding.num_cases == len(FAR_CASES[op]) and not finding.skipped, finding


@pytest.mark.parametrize("op", OPS)
def test_far_cases_are_as_far_as_they_say(op, monkeypatch):
    for dims in FAR_CASES[op].values():
        case = _far_cases.FarCase(op, torch.bfloat16, **dims)
        rows = [x.numel() for name, x in case._exact.items() if not case._is_shared(name)]
        assert (case.copies - 1) * max(rows) >= 1 << 31
        assert case.num_bytes < 80e9  # the largest GPUs run all of them
        if dims.get("packed"):
            assert case.copies * _far_cases.ROWS * dims["t"] < 1 << 31  # cu_seqlens are int32


@triton.jit
def copy_rows_kernel(x_ptr, y_ptr, D, OFFSETS: tl.constexpr, BLOCK: tl.constexpr):
    """y = x; elements whose offset is negative are left out, where a GPU would touch memory that is not ours."""
    offs_d = tl.arange(0, BLOCK)
    offs = (tl.program_id(0) * D + offs_d).to(OFFSETS)
    mask = (offs_d < D) & (offs >= 0)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=mask, other=0.0), mask=mask)


class CopyRows(torch.autograd.Function):
    """With a kernel whose offsets have a width of choice, forward and backward."""

    @staticmethod
    def forward(ctx, x, offsets):
        ctx.offsets = offsets
        y = torch.zeros_like(x)
        copy_rows_kernel[(x.numel() // x.shape[-1],)](x, y, x.shape[-1], offsets, 1024)
        return y

    @staticmethod
    def backward(ctx, dy):
        return CopyRows.apply(dy, ctx.offsets), None


@pytest.mark.parametrize("offsets, passes", [(tl.int64, True), (tl.int16, False)])
@pytest.mark.parametrize("width", [15, 16])
def test_offsets_that_are_too_narrow_are_caught(offsets, passes, width, monkeypatch):
    """16 bits beyond 2^15 and 2^16 elements are what 32 bits are beyond 2^31 and 2^32."""

    def op(x, backend, **rest):
        return short_conv(x if backend == "reference" else CopyRows.apply(x, offsets), backend="torch", **rest)

    monkeypatch.setattr(_far_cases, "LIMIT", 1 << width)
    monkeypatch.setattr(_evaluation, "op_function", lambda name: op)
    monkeypatch.setitem(FAR_CASES, "short_conv", {"rows": dict(t=1, d=1000, w=2, state=False)})
    finding = check_far("short_conv", "triton", torch.float32, CPU)
    assert finding.passed is passes, finding
    assert not finding.failure


def test_what_strays_into_other_rows_is_caught(monkeypatch):
    """Right where something flows back, but not zero elsewhere."""

    class Stray(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            dy = dy.clone()
            dy[0] = 1e-30
            return dy

    def op(x, **rest):
        return short_conv(Stray.apply(x), **rest)

    monkeypatch.setattr(_far_cases, "LIMIT", 1000)
    monkeypatch.setattr(_evaluation, "op_function", lambda name: op)
    monkeypatch.setitem(FAR_CASES, "short_conv", {"rows": dict(t=4, d=8, w=2)})
    finding = check_far("short_conv", "torch", torch.float32, CPU)
    assert finding.name == "dx of rows into which nothing flows" and not finding.passed


def test_the_farthest_copy_is_found():
    exact = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    copies = torch.tensor([[1.0, 2.0, 3.0], [1.5, 2.0, float("nan")], [0.0, 2.0, 3.0]])
    farthest = _far_cases.farthest(copies, exact)
    assert farthest[:2].tolist() == [0.0, 2.0] and farthest[2].isnan()


PACKED = {
    "causal_attention": dict(h=1, k=8),
    "linear_attention": dict(h=1, k=8, v=8, decay="head"),
    "polynomial_attention": dict(h=1, k=4, v=8),
    "short_conv": dict(d=4, w=2),
}
GRIDS = [(op, name) for op in OPS for name in check.GPU_CASES[op] if name.startswith("many")]
GRIDS += [(op, "packed") for op in PACKED]


@pytest.mark.parametrize("op, name", GRIDS)
def test_only_the_first_axis_of_a_launch_is_long(op, name, monkeypatch):
    """CUDA takes 2^31 - 1 programs along x but 65,535 along y and z, which the interpreter does not mind."""
    grids = {}

    def record(self, *args, **options):
        given = {**dict(zip(self.arg_names, args, strict=False)), **options}
        grids[self.fn.__name__] = self.grid(given) if callable(self.grid) else self.grid

    monkeypatch.setattr(triton.runtime.interpreter.GridExecutor, "__call__", record)
    dims = check.GPU_CASES[op].get(name) or PACKED[op] | dict(b=1, t=check.MANY)
    if name == "packed":
        dims["cu_seqlens"] = tuple(range(check.MANY + 1))
    _evaluation.evaluate(op, "triton", _evaluation.draw_inputs(op, torch.float32, **dims), torch.float32)
    assert grids
    assert not {kernel: grid for kernel, grid in grids.items() if max(grid[1:], default=1) > 65_535}
