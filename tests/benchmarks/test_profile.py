"""`subquad profile` without a GPU, from end to end; and what it refuses before it compiles anything."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from subquad import cli
from subquad.benchmarks.profile import run_profile
from subquad.benchmarks.profile.calls import OP_SIZES, make_call, plan_subject
from subquad.benchmarks.profile.capture import helper_op, tensor_bytes
from subquad.cli import _reading
from subquad.kernels import OPS
from subquad.kernels.short_conv._triton import FORWARD, MIN_CHUNK
from subquad.mixers import MIXERS

B, T, D, W = 2, 256, 256, 3
BLOCK_D = FORWARD.row("sm_90", torch.bfloat16, W)["BLOCK_D"]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """(what the command printed, its record)."""
    folder = tmp_path_factory.mktemp("profile")
    sizes = f"b={B},t={T},d={D},w={W},activation=silu"
    command = [sys.executable, "-m", "subquad", "profile", "short_conv", "--target", "h100"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [*command, "--sizes", sizes, "--out", str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    [line] = (folder / "records.jsonl").read_text().splitlines()
    return done.stdout, json.loads(line)


def test_it_says_that_nothing_was_measured(profiled):
    printed, record = profiled
    assert "a model, not a measurement" in printed and "Nothing was run" in printed
    assert record["kind"] == "profile_model" and record["measured"] is False
    assert "short_conv_fwd" in printed and "short_conv_bwd" in printed


def test_requested_bytes_are_those_counted_by_hand(profiled):
    [forward] = profiled[1]["passes"][0]["kernels"]
    chunks, blocks = T // MIN_CHUNK, D // BLOCK_D
    programs = B * chunks * blocks
    row = BLOCK_D * 2  # bytes of bfloat16
    assert forward["grid"] == [programs, 1, 1]
    # Its rows and the W - 1 before them; the last chunk of a sequence reads the rows again that it leaves behind.
    rows = programs * (MIN_CHUNK + W - 1) + B * blocks * (W - 1)
    assert forward["reads"] == {"x_ptr": rows * row, "weight_ptr": programs * W * row, "bias_ptr": programs * row}
    assert forward["writes"] == {"y_ptr": B * T * D * 2, "last_ptr": B * (W - 1) * D * 4}


def test_device_bytes_are_the_compulsory_ones(profiled):
    """Forward reads x, the filter and the bias, and writes y and the last inputs: each once."""
    forward, backward = profiled[1]["passes"]
    inputs = (B * T * D + D * W + D) * 2
    assert forward["compulsory_bytes"] == forward["device_bytes"] == inputs + B * T * D * 2 + B * (W - 1) * D * 4
    assert backward["compulsory_bytes"] == inputs + B * T * D * 2 + inputs
    assert backward["device_bytes"] > backward["compulsory_bytes"]  # partial sums of the filter's gradient
    assert forward["helper_count"] == 0 and any("sum" in name for name in backward["helper_bytes"])


def test_the_bound_follows_from_the_bytes(profiled):
    forward, backward = profiled[1]["passes"]
    assert forward["lower_bound_us"] == pytest.approx(forward["device_bytes"] / 3350e3)
    helpers = sum(backward["helper_bytes"].values()) / 3350e3
    assert backward["lower_bound_us"] == pytest.approx(backward["device_bytes"] / 3350e3 + helpers)


def test_machine_code_was_read(profiled):
    for one in profiled[1]["passes"]:
        [kernel] = one["kernels"]
        assert kernel["num_warps"] == 1 and 16 <= kernel["registers"] <= 255 and kernel["instructions"] > 100
        assert 0 < kernel["occupancy"] <= 1 and kernel["hot_loop"] is None


@pytest.mark.parametrize("asked, message", [
    (dict(name="conv"), "unknown op 'conv'; expected one of causal_attention, "),
    (dict(name="hyena"), "unknown op 'hyena'; expected one of .*; 'hyena' is a mixer"),
    (dict(name="conv", mixer=True), "unknown mixer 'conv'; expected one of attention, "),
    (dict(target="v100"), "unknown target 'v100'; expected one of a100, h100, b200, l40s, mi300"),
    (dict(dtype="float64"), "unknown dtype 'float64'; expected one of float32, "),
    (dict(sizes={"z": 3}), "short_conv has no size 'z'; expected some of b, t, d, w, "),
    (dict(sizes={"t": 0}), "short_conv: t must be at least 1, got 0"),
    (dict(sizes={"t": "long"}), "short_conv: t must be int, got 'long'"),
    (dict(sizes={"t": True}), "short_conv: t must be int, got True"),
    (dict(name="attention", mixer=True, sizes={"b": -1}), "attention: b must be at least 1, got -1"),
    (dict(), "TRITON_INTERPRET=1 turns the compiler off; unset it"),
])  # fmt: skip
def test_what_cannot_be_profiled_is_refused_first(asked, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_profile(**({"name": "short_conv", "target": "h100", "out": tmp_path} | asked))
    assert not list(tmp_path.iterdir())


def test_more_elements_than_any_gpu_holds_are_refused():
    subject = plan_subject("short_conv", is_mixer=False, sizes={"t": 1 << 40}, dtype="float16")
    with FakeTensorMode(), pytest.raises(ValueError, match=r"elements, expected at most 1\.1e\+12"):
        make_call(subject)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_usual_sizes(op):
    sizes = plan_subject(op, is_mixer=False, sizes={}, dtype="bfloat16").sizes
    with FakeTensorMode():
        call = make_call(plan_subject(op, is_mixer=False, sizes=sizes, dtype="bfloat16"))
    assert sizes == OP_SIZES[op] and call.leaves[0].dtype == torch.bfloat16 and call.leaves[0].requires_grad


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_has_usual_sizes(mixer):
    with FakeTensorMode():
        call = make_call(plan_subject(mixer, is_mixer=True, sizes={}, dtype="bfloat16"))
    assert len(call.leaves) > 1


def test_gates_stay_in_float32():
    subject = plan_subject("linear_attention", is_mixer=False, sizes={"decay": "head"}, dtype="float16")
    with FakeTensorMode():
        dtypes = [x.dtype for x in make_call(subject).leaves]
    assert dtypes == [torch.float16] * 3 + [torch.float32]


def test_bytes_of_helper_operations():
    x = torch.zeros(4, 8)
    add, view, fill, copy, empty = (torch.ops.aten.add.Tensor, torch.ops.aten.view.default,
                                    torch.ops.aten.fill_.Scalar, torch.ops.aten.copy_.default,
                                    torch.ops.aten.empty_like.default)  # fmt: skip
    assert helper_op(add, (x, x), {}, x + x).bytes == 3 * 128
    assert helper_op(view, (x, [32]), {}, x.view(32)) is None
    assert helper_op(empty, (x,), {}, torch.empty_like(x)) is None
    assert helper_op(fill, (x, 1.0), {}, x.fill_(1.0)).bytes == 128
    assert helper_op(copy, (x, torch.ones(4, 8)), {}, x.copy_(torch.ones(4, 8))).bytes == 2 * 128
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    product = helper_op(torch.ops.aten.mm.default, (a, b), {}, a @ b)
    assert (product.flops, product.bytes) == (2 * 3 * 4 * 5, 4 * (12 + 20 + 15))


def test_a_repeated_tensor_has_the_bytes_that_it_stores():
    assert tensor_bytes(torch.zeros(1, 8).expand(100, 8)) == 32


def test_sizes_of_the_command_line():
    assert _reading.read_sizes("sizes", "b=4, decay=head,scale=0.5,window=None,skip=False") == {
        "b": 4, "decay": "head", "scale": 0.5, "window": None, "skip": False,
    }  # fmt: skip
    with pytest.raises(cli.UsageError, match="--sizes: expected name=value separated by commas, got 't'"):
        _reading.read_sizes("sizes", "b=4,t")
