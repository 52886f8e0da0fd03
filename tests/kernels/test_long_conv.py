"""Laws of long_conv beyond the contract: what the equation says, and that each way to compute it is taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.kernels._configs import forced
from subquad.kernels.long_conv import _toeplitz, _torch, _triton, long_conv

from .contract import assert_within_budget, cast, gradients, make_inputs, seeded

BACKENDS = ("reference", "torch", "triton")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def by_matrix(x: Tensor, filter: Tensor) -> Tensor:
    """The filter written out as a matrix: M_ij = filter_{i-j} where 0 <= i - j < l."""
    t, l = x.shape[1], filter.shape[1]
    lag = torch.arange(t)[:, None] - torch.arange(t)[None, :]
    matrix = torch.where((lag >= 0) & (lag < l), filter[:, lag.clamp(0, l - 1)], 0.0)  # (d, t, t)
    return torch.einsum("dij,bjd->bid", matrix, x)


def by_conv1d(x: Tensor, filter: Tensor) -> Tensor:
    d, l = filter.shape
    return F.conv1d(F.pad(x.mT, (l - 1, 0)), filter.flip(1)[:, None], groups=d).mT


def assert_close(actual: Tensor, expected: Tensor) -> None:
    limit = 32 * torch.finfo(actual.dtype).eps * expected.abs().max().item()
    assert (actual.double() - expected.double()).abs().max().item() <= limit


@pytest.mark.parametrize("l", [1, 6, 23, 40])
def test_reference_is_a_triangular_toeplitz_matrix(l):
    x, filter, skip, pre, post = (
        randn(2, 23, 3),
        randn(3, l),
        randn(3),
        randn(2, 23, 3, seed=1),
        randn(2, 23, 3, seed=2),
    )
    expected = post * (by_matrix(pre * x, filter) + skip * pre * x)
    y = long_conv(x, filter, skip, pre_gate=pre, post_gate=post, backend="reference")
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(by_conv1d(x, filter), by_matrix(x, filter))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("l", [3, 11, 20])
def test_impulse_returns_the_filter(backend, l):
    x, filter = torch.zeros(1, 11, 2), randn(2, l).float()
    x[:, 0] = 1
    assert_close(long_conv(x, filter, backend=backend)[0].T, F.pad(filter, (0, 11))[:, :11])


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tap_scales_and_so_does_the_skip(backend):
    x, scale = randn(3, 7, 2).float(), randn(2, seed=1).float()
    assert_close(long_conv(x, scale[:, None], backend=backend), x * scale)
    assert_close(long_conv(x, torch.zeros(2, 5), scale, backend=backend), x * scale)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gates_are_factors_before_and_after(backend):
    x, pre, post = (randn(2, 13, 2, seed=seed).float() for seed in range(3))
    filter = randn(2, 13, seed=3).float()
    gated = long_conv(x, filter, pre_gate=pre, post_gate=post, backend=backend)
    assert_close(gated, post * long_conv(pre * x, filter, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_taps_beyond_the_sequence_do_not_matter(backend):
    x, filter = randn(2, 9, 2).float(), randn(2, 14, seed=1).float().requires_grad_()
    y = long_conv(x, filter, backend=backend)
    assert_close(y, long_conv(x, filter[:, :9], backend=backend))
    (dfilter,) = torch.autograd.grad(y.sum(), filter)
    assert dfilter[:, :9].abs().min() > 0
    assert torch.equal(dfilter[:, 9:], torch.zeros(2, 5))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_rows_do_not_mix(backend):
    x, filter = randn(3, 19, 2).float(), randn(2, 19, seed=1).float()
    together = long_conv(x, filter, backend=backend)
    for row, y in zip(x, together, strict=True):
        assert_close(y, long_conv(row[None], filter, backend=backend)[0])
    assert torch.equal(long_conv(torch.zeros_like(x), filter, backend=backend), torch.zeros_like(x))


def force(path: str, monkeypatch) -> str:
    """Lower the limits so that a small input takes the path; return its backend."""
    match path:
        case "torch-blocks":  # of time, of channels, of rows
            for name, value in {"NUM_BLOCKS": 4, "MIN_BLOCK": 4, "MIN_CHANNELS": 2, "BLOCK_ELEMENTS": 64}.items():
                monkeypatch.setattr(_torch, name, value)
        case "torch-toeplitz":
            for name, value in {"MAX_LENGTH": 1000, "MIN_BATCH": 1, "CHANNELS": 2, "BLOCK_ELEMENTS": 90}.items():
                monkeypatch.setattr(_toeplitz, name, value)
        case "triton-blocks":
            monkeypatch.setattr(_triton, "ON_CHIP", 256)
    return path.split("-")[0]


PATHS = [
    *[("torch-blocks", dims) for dims in ((3, 37, 5, 37), (2, 41, 3, 10), (1, 64, 2, 90), (2, 53, 3, 1))],
    *[("torch-toeplitz", dims) for dims in ((3, 37, 5, 37), (4, 20, 3, 7), (2, 1, 1, 3))],
    *[("triton-blocks", dims) for dims in ((3, 523, 1, 523), (1, 300, 2, 600), (2, 769, 1, 40))],
    *[("triton-chip", dims) for dims in ((2, 499, 1, 499), (1, 521, 1, 300))],
]


def assert_within_the_budget_of_the_reference(backend: str, **dims: int) -> None:
    """The output and the gradients."""
    low = make_inputs("long_conv", dims, torch.float32)
    exact, rounded = cast(low, torch.float64), low
    y, y_exact, y_rounded = (
        long_conv(**inputs, backend=which)
        for inputs, which in ((low, backend), (exact, "reference"), (rounded, "reference"))
    )
    assert_within_budget(y, y_exact, y_rounded, torch.float32, "y")
    exact, rounded = gradients("long_conv", "reference", exact), gradients("long_conv", "reference", rounded)
    for name, actual in gradients("long_conv", backend, low).items():
        assert_within_budget(actual, exact[name], rounded[name], torch.float32, f"d{name}")


@pytest.mark.parametrize(
    "path, dims", PATHS, ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value))
)
def test_every_path_matches_the_reference(path, dims, monkeypatch):
    assert_within_the_budget_of_the_reference(force(path, monkeypatch), **dict(zip("btdl", dims, strict=True)))


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_however_many_channels_a_program_takes(channels):
    config = dict(CHANNELS=channels, num_warps=4, num_stages=1)
    with forced("long_conv_fwd", config), forced("long_conv_bwd", config):
        assert_within_the_budget_of_the_reference("triton", b=2, t=200, d=5, l=150)


def test_paths_are_the_ones_meant(monkeypatch):
    x, filter = torch.zeros(2, 523, 1), torch.zeros(1, 523)
    assert _torch._plan(x, 523).num == 1 and _triton._plan(x, filter).num_blocks == 1
    force("torch-blocks", monkeypatch)
    force("triton-blocks", monkeypatch)
    assert _torch._plan(x, 523).num == 4 and _triton._plan(x, filter).num_blocks == 3
    assert not _toeplitz.pays(torch.zeros(2, 37, 1)) and _toeplitz.pays(torch.zeros(512, 64, 1))


def test_long_prime_length():
    t = 8209
    x, filter = randn(1, t, 2).requires_grad_(), (randn(2, t, seed=1) / t**0.5).requires_grad_()
    assert _torch._plan(x, t).num == _torch.NUM_BLOCKS > 1
    y, expected = long_conv(x, filter, backend="torch"), by_conv1d(x, filter)
    torch.testing.assert_close(y, expected)
    dy = randn(1, t, 2, seed=2)
    found, wanted = (torch.autograd.grad(result, (x, filter), dy) for result in (y, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gradients_are_repeatable_and_leave_theirs_alone(backend):
    x, filter = randn(2, 33, 3).float().requires_grad_(), randn(3, 33, seed=1).float().requires_grad_()
    dy = randn(2, 33, 3, seed=2).float()
    before = dy.clone()
    y = long_conv(x, filter, backend=backend)
    first = torch.autograd.grad(y, (x, filter), dy, retain_graph=True)
    second = torch.autograd.grad(y, (x, filter), dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(dy, before)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_gates_may_be_wider_than_x(backend):
    x, filter, gate = randn(1, 9, 2).half(), randn(2, 9, seed=1).half(), randn(1, 9, 2, seed=2).float().requires_grad_()
    y = long_conv(x, filter, pre_gate=gate, post_gate=gate, backend=backend)
    (dgate,) = torch.autograd.grad(y.sum(), gate)
    assert y.dtype == torch.float16 and dgate.dtype == torch.float32


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"filter": torch.zeros(3, 8)},
            r"long_conv: filter has d=3, but x has d=2; filter must be \(d, l\), got shape \(3, 8\)",
        ),
        ({"filter": torch.zeros(2, 0)}, r"long_conv: filter has l=0, every axis needs at least one element"),
        ({"skip": torch.zeros(2, 1)}, r"long_conv: skip must be \(d\), got shape \(2, 1\)"),
        ({"pre_gate": torch.zeros(1, 7, 2)}, r"long_conv: pre_gate has t=7, but x has t=8"),
        ({"post_gate": torch.zeros(2, 8, 2)}, r"long_conv: post_gate has b=2, but x has b=1"),
        (
            {"filter": torch.zeros(2, 8).double()},
            r"long_conv: dtypes do not mix, expected one dtype, got float32, float64",
        ),
        ({"skip": torch.zeros(2).half()}, r"long_conv: gates, biases and states must be float32 beside torch.float32"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        long_conv(**({"x": torch.zeros(1, 8, 2), "filter": torch.zeros(2, 8)} | change))
