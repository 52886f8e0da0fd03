"""Laws of short_conv beyond the contract: what it equals, and that no token sees across a border."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.kernels import _configs
from subquad.kernels.short_conv import _torch, _triton, short_conv

BACKENDS = ("reference", "torch", "triton")
BORDERS = ((0, 9), (0, 1, 9), (0, 4, 4, 9), (0, 0, 9, 9), (0, 2, 3, 5, 9))


def make(b: int, t: int, d: int, w: int, n: int | None = None) -> dict[str, Tensor]:
    """x, weight, bias and the state of n sequences (one a row of the batch if None), float32."""
    shapes = {"x": (b, t, d), "weight": (d, w), "bias": (d,), "state": (n or b, w - 1, d)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture(params=[4, 32])
def chunk(request, monkeypatch) -> int:
    """Rows that a Triton program owns; a chunk shorter than a sequence has neighbours on both sides."""
    monkeypatch.setattr(_triton, "MIN_CHUNK", request.param)
    return request.param


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("w", [1, 3, 4])
def test_equals_pytorchs_grouped_convolution(backend, w):
    inputs = make(b=2, t=11, d=6, w=w)
    del inputs["state"]
    x, weight, bias = inputs.values()
    expected = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=w - 1, groups=6)[..., :11].transpose(1, 2)
    torch.testing.assert_close(short_conv(**inputs, backend=backend)[0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_is_silu_of_the_plain_result(backend):
    inputs = make(b=1, t=5, d=3, w=2)
    plain, activated = (short_conv(**inputs, activation=name, backend=backend)[0] for name in (None, "silu"))
    torch.testing.assert_close(activated, F.silu(plain))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("t", [1, 2, 3, 8])
def test_state_is_the_last_inputs(backend, t):
    inputs = make(b=2, t=t, d=3, w=4)
    seen = torch.cat([inputs["state"], inputs["x"]], dim=1)
    state = short_conv(**inputs, backend=backend)[1]
    assert torch.equal(state, seen[:, -3:])
    assert torch.equal(short_conv(inputs["x"], inputs["weight"], backend=backend)[1][:, -1], inputs["x"][:, -1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_replay_the_sequence(backend):
    inputs = make(b=2, t=7, d=5, w=4)
    whole, last = short_conv(**inputs, activation="silu", backend=backend)
    ys, state = [], inputs["state"]
    for now in range(7):
        step = inputs | {"x": inputs["x"][:, now : now + 1], "state": state}
        y, state = short_conv(**step, activation="silu", backend=backend)
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, dim=1), whole)
    assert torch.equal(state, last)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("borders", BORDERS, ids=str)
def test_packed_equals_each_sequence_alone(backend, borders, chunk):
    inputs = make(b=1, t=9, d=3, w=4, n=len(borders) - 1)
    dy, dlast = torch.randn(1, 9, 3), torch.randn_like(inputs["state"])

    def run(**inputs):
        leaves = [x.clone().requires_grad_() for x in inputs.values()]
        return leaves, short_conv(*leaves[:3], state=leaves[3], activation="silu", **options)

    options = {"backend": backend, "cu_seqlens": torch.tensor(borders)}
    leaves, packed = run(**inputs)
    found = torch.autograd.grad(packed, leaves, (dy, dlast))
    options = {"backend": "reference"}
    totals = [torch.zeros_like(x) for x in leaves]
    totals[3] += dlast  # what an empty sequence hands on; the others are set below
    for row, (start, end) in enumerate(pairwise(borders)):
        if start == end:
            assert torch.equal(packed[1][row], inputs["state"][row])
            continue
        span = slice(start, end)
        alone = inputs | {"x": inputs["x"][:, span], "state": inputs["state"][row : row + 1]}
        leaves, results = run(**alone)
        for actual, expected in zip((packed[0][:, span], packed[1][row : row + 1]), results, strict=True):
            torch.testing.assert_close(actual, expected)
        dx, dweight, dbias, dstate = torch.autograd.grad(results, leaves, (dy[:, span], dlast[row : row + 1]))
        totals[0][:, span] = dx
        totals[1] += dweight
        totals[2] += dbias
        totals[3][row] = dstate[0]
    for actual, expected in zip(found, totals, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [False, True])
def test_nothing_crosses_a_border(backend, packed, chunk):
    """One sequence is full of NaN, its neighbours on both sides come out as if it were not there."""
    inputs = make(b=3, t=6, d=3, w=4)
    options = {"activation": "silu", "backend": backend}
    if packed:
        inputs["x"] = inputs["x"].reshape(1, 18, 3)
        options["cu_seqlens"] = torch.tensor([0, 6, 12, 18])

    def results(**inputs):
        x, state = inputs["x"].clone().requires_grad_(), inputs["state"].clone().requires_grad_()
        y, last = short_conv(**(inputs | {"x": x, "state": state}), **options)
        dx, dstate = torch.autograd.grad((y.sum() + last.sum()), (x, state))
        return [part.reshape(3, -1, 3)[::2] for part in (y, last, dx, dstate)]

    clean = results(**inputs)
    inputs["x"].view(3, 6, 3)[1] = float("nan")
    inputs["state"][1] = float("nan")
    for actual, expected in zip(results(**inputs), clean, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_state_alone(backend):
    """Only the last inputs are used, so y sends nothing back."""
    inputs = make(b=1, t=2, d=3, w=4)
    x, state = (inputs[name].requires_grad_() for name in ("x", "state"))
    dlast = torch.randn(1, 3, 3)
    dx, dstate = torch.autograd.grad(short_conv(**inputs, backend=backend)[1], (x, state), dlast)
    assert torch.equal(dx, dlast[:, 1:])
    assert torch.equal(dstate, torch.cat([torch.zeros(1, 2, 3), dlast[:, :1]], dim=1))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_long_batches_in_blocks(backend, monkeypatch):
    """More sequences, rows and channels than one block of the backward pass holds."""
    monkeypatch.setattr(_torch, "BLOCK_ELEMENTS", 64)
    for table in (_triton.FORWARD, _triton.BACKWARD):
        config = table.row("cuda", torch.float32, 3)
        monkeypatch.setitem(_configs._forced, table.name, config | dict(BLOCK_D=16))
    for b, t in ((5, 3), (2, 13)):
        inputs = {name: x.requires_grad_() for name, x in make(b=b, t=t, d=20, w=3).items()}
        grads = [
            torch.autograd.grad(short_conv(**inputs, activation="silu", backend=which)[0].cos().sum(), inputs.values())
            for which in (backend, "reference")
        ]
        for actual, expected in zip(*grads, strict=True):
            torch.testing.assert_close(actual, expected)


def test_errors_name_the_argument_and_the_remedy():
    inputs = make(b=2, t=4, d=3, w=4)
    x, weight = inputs["x"], inputs["weight"]
    with pytest.raises(ValueError, match="short_conv: weight must be at most 8 wide, got w=9; use long_conv"):
        short_conv(x, torch.randn(3, 9))
    with pytest.raises(ValueError, match="short_conv: activation must be None or 'silu', got 'relu'"):
        short_conv(x, weight, activation="relu")
    with pytest.raises(ValueError, match=r"short_conv: state has w-1=4, but .* has w-1=3; state must be \(n, w-1, d\)"):
        short_conv(x, weight, state=torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match=r"short_conv: state has n=3, but .* has n=2"):
        short_conv(x, weight, state=torch.randn(3, 3, 3))
    with pytest.raises(ValueError, match=r"short_conv: weight has d=2, but x has d=3"):
        short_conv(x, weight[:2])
    with pytest.raises(ValueError, match=r"short_conv: x must be \(b, t, d\), got shape \(4, 3\)"):
        short_conv(x[0], weight)
    with pytest.raises(ValueError, match="so b must be 1, got b=2"):
        short_conv(x, weight, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"cu_seqlens must rise from 0 to t=4, got \[0, 5\]"):
        short_conv(x[:1], weight, cu_seqlens=torch.tensor([0, 5]))


def test_a_filter_of_width_zero_is_refused():
    with pytest.raises(ValueError, match=r"short_conv: weight has w=0, every axis needs at least one element"):
        short_conv(torch.randn(1, 4, 3), torch.randn(3, 0))
