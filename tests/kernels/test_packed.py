"""Packed sequences: borders are checked, sequences do not see each other, empty ones are harmless."""

import pytest
import torch

from subquad.kernels.short_conv import short_conv


def inputs(t=6):
    return torch.randn(1, t, 3), torch.randn(3, 2)


@pytest.mark.parametrize(
    "borders, message",
    [
        ([0, 4], r"must rise from 0 to t=6, got \[0, 4\]"),
        ([1, 6], r"must rise from 0 to t=6, got \[1, 6\]"),
        ([0, 5, 3, 6], r"must rise from 0 to t=6, got \[0, 5, 3, 6\]"),
        ([0, -2, 6], r"must rise from 0 to t=6"),
        ([0], r"must be \(n \+ 1,\) of int32 or int64"),
    ],
)
def test_borders_that_do_not_fit_are_refused(borders, message):
    with pytest.raises(ValueError, match="short_conv: cu_seqlens " + message):
        short_conv(*inputs(), cu_seqlens=torch.tensor(borders))


def test_borders_of_another_dtype_are_refused():
    with pytest.raises(ValueError, match=r"got shape \(2,\) of torch\.float32"):
        short_conv(*inputs(), cu_seqlens=torch.tensor([0.0, 6.0]))


def test_more_than_one_row_is_refused():
    with pytest.raises(ValueError, match="packs all sequences into one row, so b must be 1, got b=2"):
        short_conv(torch.randn(2, 6, 3), torch.randn(3, 2), cu_seqlens=torch.tensor([0, 6]))


@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
def test_an_empty_sequence_hands_its_state_on(backend):
    x, weight = inputs()
    state = torch.randn(3, 1, 3, requires_grad=True)
    _, after = short_conv(x, weight, state=state, cu_seqlens=torch.tensor([0, 2, 2, 6]), backend=backend)
    assert torch.equal(after[1], state[1])
    (dstate,) = torch.autograd.grad(after.sum(), state)
    assert torch.equal(dstate[1], torch.ones(1, 3)) and torch.equal(dstate[0], torch.zeros(1, 3))
