"""Ops whose PyTorch form cuts heads, sequences and time into blocks, where nothing divides evenly."""

import pytest
import torch

from subquad.kernels import _blocks

from .contract import assert_all_within_budget, make_inputs

GATES = {"mild": (0.0, -1e-4, -0.1, -0.4), "turns": (0.0, -1e-4, -0.1, -9.0)}  # all segments mild; some of them steep
OPS = [
    ("linear_attention", dict(decay="head")),
    ("linear_attention", dict(decay="channel", normalize=True)),
    ("delta_rule", dict(decay="head")),
    ("delta_rule", dict(decay="channel")),
    ("generalized_delta_rule", {}),
]


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("b, h", [(1, 5), (5, 1), (2, 4)])
@pytest.mark.parametrize("op, dims", OPS, ids=lambda value: value if isinstance(value, str) else value.get("decay"))
def test_three_groups_a_block_and_two_chunks_a_segment(monkeypatch, op, dims, b, h, gates):
    monkeypatch.setattr(_blocks, "SEGMENT", 32)
    monkeypatch.setattr(_blocks, "CHUNK", 16)
    monkeypatch.setattr(_blocks, "BLOCK_ELEMENTS", 3 * 32 * 16)
    assert len(list(_blocks.blocks(b, 70, h, 8, 8))) > 1
    assert_all_within_budget(
        op, "torch", make_inputs(op, dict(b=b, t=70, h=h, k=8, v=8, gates=GATES[gates]) | dims, torch.float32)
    )
