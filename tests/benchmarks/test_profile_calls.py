"""Decoding and packed rows in `subquad profile`: what is asked for by sizes, and what of it runs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode

from subquad.benchmarks.profile.calls import make_call, plan_subject
from subquad.benchmarks.profile.model import KernelModel, Occupancy, PassModel
from subquad.benchmarks.profile.table import summary
from subquad.benchmarks.profile.targets import GPUS


def plan(name: str, is_mixer: bool = False, **sizes):
    return plan_subject(name, is_mixer=is_mixer, sizes=sizes, dtype="bfloat16")


@pytest.mark.parametrize("subject, passes", [
    (plan("linear_attention", t=1, state=True), 1),
    (plan("causal_attention", t=1, s=65536), 1),
    (plan("attention", is_mixer=True, t=1), 1),
    (plan("attention", is_mixer=True, t=64, past=4096), 1),
    (plan("causal_attention", t=64, s=128), 2),
    (plan("linear_attention", state=True), 2),
])  # fmt: skip
def test_one_token_and_what_follows_a_past_are_not_trained_on(subject, passes):
    assert subject.passes == ("forward", "backward")[:passes]


def test_decoding_gives_no_gradient_and_a_state_stays_float32():
    with FakeTensorMode():
        call = make_call(plan("short_conv", b=2, t=1, d=8, w=4, state=True))
    assert call.inputs["state"].shape == (2, 3, 8) and call.inputs["state"].dtype == torch.float32
    assert call.leaves == [] and not any(x.requires_grad for x in call.tensors)
    y = torch.zeros(2, 1, 8, dtype=torch.bfloat16)
    # x, bias and weight in halves, the state in singles, and the output
    assert call.forward_bytes([y]) == (16 + 8 + 32) * 2 + 48 * 4 + 32


def test_packed_sequences_are_given_by_their_number():
    with FakeTensorMode():
        call = make_call(plan("linear_attention", b=1, t=100, num_seqs=3))
    assert call.inputs["cu_seqlens"].shape == (4,) and len(call.leaves) == 3
    with pytest.raises(ValueError, match="long_conv has no size 'num_seqs'"):
        plan("long_conv", num_seqs=3)


def test_a_mixer_decodes_with_the_state_of_its_past():
    """In float32 on the CPU; the op runs in the interpreter."""
    subject = plan_subject(
        "attention", is_mixer=True, sizes=dict(b=1, t=1, d_model=32, num_heads=2, past=6), dtype="float32"
    )
    call = make_call(subject)
    assert call.state_bytes == 2 * 6 * 32 * 4  # keys and values
    first, second = call.forward()[0], call.forward()[0]
    assert first.shape == (1, 1, 32) and not torch.equal(first, second)  # the second sees one token more


def test_a_decoded_token_is_modelled(tmp_path):
    command = [sys.executable, "-m", "subquad", "profile", "short_conv", "--target", "a100"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    sizes = ["--sizes", "b=2,t=1,d=256,w=3,state=True", "--out", str(tmp_path)]
    done = subprocess.run([*command, *sizes], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [forward] = json.loads((tmp_path / "records.jsonl").read_text())["passes"]
    x, weights, state = 2 * 256 * 2, 256 * 4 * 2, 2 * 2 * 256 * 4
    assert forward["pass"] == "forward" and forward["compulsory_bytes"] == 2 * x + weights + 2 * state
    assert (tmp_path / "short_conv_a100.png").stat().st_size > 5000 and "short_conv_a100.png" in done.stdout


def test_bytes_that_depend_on_memory_are_not_added_up():
    unknown = KernelModel("walk", 2, (1, 1, 1), None, Occupancy(1, 1, 1.0, "warps"), None, "why", None, {})
    said = summary(PassModel("forward", (unknown,), 5_000_000, {}, 0, 0, 0.0), GPUS["h100"])
    assert "of which 2 move what depends on values in memory" in said and "5.0 MB" in said and "at least" not in said
