"""Laws of 65,536 tokens of which some fade not at all and some at once: nothing is lost on the way, in any dtype."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from .contract import axes, call, cast, gradients, is_real, make_inputs

T = 65536
PIECE = 9001  # tokens: no multiple of any chunk
DENSE = (0.0, -1e-4, -1e-4, -1.0, -100.0)  # nothing is remembered for long
RARE = (0.0, -1e-4, -1e-4) * 300 + (-1.0, -100.0)  # hundreds of tokens are, and then all is gone at once


def cases(gates: tuple[float, ...]) -> list:
    heads = dict(b=1, t=T, h=1, k=4, v=4, gates=gates)
    steps = tuple(-x for x in gates)
    return [
        *(pytest.param(op, heads | dict(decay=decay), id=f"{op}-{decay}")
          for op in ("linear_attention", "delta_rule") for decay in (None, "head", "channel")),
        pytest.param("generalized_delta_rule", heads, id="generalized_delta_rule"),
        pytest.param("linear_recurrence", dict(b=1, t=T, d=4, gates=gates), id="linear_recurrence"),
        pytest.param("selective_scan", dict(b=1, t=T, d=2, m=2, steps=steps), id="selective_scan"),
    ]  # fmt: skip


@pytest.mark.parametrize("op, dims", cases(DENSE))
def test_the_whole_equals_its_pieces(op, dims):
    inputs = make_inputs(op, dims, torch.float32)
    timed = [name for name, x in inputs.items() if is_real(x) and "t" in axes(op, name)]
    y, state = call(op, "torch", inputs)
    carried, pieces = inputs["state"], []
    for start in range(0, T, PIECE):
        part = {name: inputs[name][:, start : start + PIECE] for name in timed}
        piece, carried = call(op, "torch", inputs | part | dict(state=carried))
        pieces.append(piece)
    assert_equal_to(y, torch.cat(pieces, dim=1), 1e-5)
    assert_equal_to(state, carried, 1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16, "autocast"], ids=str)
@pytest.mark.parametrize("op, dims", cases(RARE))
def test_results_and_gradients_keep_their_digits(op, dims, precision):
    """Against the same code in float64: what is computed in float32 loses 5e-5 at most, what is stored a rounding.

    That the code is right at all is asked of shorter sequences, against the reference.
    """
    autocast = precision == "autocast"
    dtype = torch.bfloat16 if autocast else precision
    low = make_inputs(op, dims, dtype)
    exact = results_and_gradients(op, cast(low, torch.float64))
    with torch.autocast("cpu", dtype) if autocast else nullcontext():
        found = results_and_gradients(op, cast(low, torch.float32) if autocast else low)
    for name, x in found.items():
        assert_equal_to(x.double(), exact[name], 5e-5 + torch.finfo(dtype).eps, name)


def results_and_gradients(op: str, inputs: dict) -> dict[str, Tensor]:
    results = dict(zip(("y", "state"), call(op, "torch", inputs), strict=True))
    return results | {f"d{name}": dx for name, dx in gradients(op, "torch", inputs).items()}


def assert_equal_to(actual: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    """Up to a part of the largest value, or of the smallest that float32 holds with all its digits."""
    assert torch.isfinite(actual).all(), name
    size = max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)
    assert_close(actual, expected, rtol=0, atol=tolerance * size, msg=lambda text: f"{name}: {text}")
