"""The laws of causal_attention: what its options mean, told without the code that computes them."""

import math
from itertools import pairwise

import pytest
import torch

from subquad.kernels import _target
from subquad.kernels._configs import forced
from subquad.kernels.causal_attention import _torch
from subquad.kernels.causal_attention import causal_attention as attend
from subquad.kernels.causal_attention._inputs import CASES
from subquad.kernels.causal_attention._triton import decode
from subquad.kernels.causal_attention._triton._configs import BACKWARD, FORWARD

from .contract import (
    BACKENDS,
    assert_within_budget,
    call,
    cast,
    exact_and_rounded,
    gradients,
    make_inputs,
    over_budget,
)

OP = "causal_attention"
EVERYTHING = dict(b=2, t=21, s=30, h=4, g=2, k=8, v=6, window=9, softcap=3.0, scale=0.4, sinks=True, starts=(4, 17))
MANY_TILES = {  # several tiles of queries and keys, so that some are skipped and some need no mask
    "grouped": dict(b=1, t=150, h=2, g=1, k=16),
    "windows": dict(b=1, t=170, h=1, k=16, window=100),
    "everything": dict(b=2, t=90, s=170, h=1, k=16, v=24, window=110, softcap=3.0, sinks=True, starts=(5, 100)),
    "packed": dict(b=1, t=150, h=1, k=16, window=60, cu_seqlens=(0, 70, 75, 150)),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def assert_same(actual, expected):
    assert_within_budget(actual, expected.double(), expected, torch.float32, OP)


def by_hand(q, k, v, window=None, scale=None, softcap=None, sinks=None, starts=None):
    """One query, one head, one key after the other, in Python's own numbers."""
    (b, t, h, width), (s, g) = q.shape, k.shape[1:3]
    scale = 1 / math.sqrt(width) if scale is None else scale
    y = torch.zeros(b, t, h, v.shape[3], dtype=torch.float64)
    for row in range(b):
        for i in range(t):
            for head in range(h):
                source, now = head * g // h, s - t + i
                total = 0.0
                for j in range(s):
                    too_old = window is not None and now - j >= window
                    padding = starts is not None and j < starts[row]
                    if j > now or too_old or padding:
                        continue
                    score = scale * sum((q[row, i, head] * k[row, j, source]).tolist())
                    if softcap is not None:
                        score = softcap * math.tanh(score / softcap)
                    total += math.exp(score)
                    y[row, i, head] += math.exp(score) * v[row, j, source]
                if total:
                    y[row, i, head] /= total + (0.0 if sinks is None else math.exp(sinks[head]))
    return y


@pytest.mark.parametrize("without", [(), ("starts", "softcap"), ("window", "sinks"), ("scale",)])
def test_reference_is_the_equation(without):
    inputs = {name: x for name, x in make_inputs(OP, EVERYTHING).items() if name not in without}
    torch.testing.assert_close(attend(**inputs, backend="reference"), by_hand(**inputs))


@pytest.mark.parametrize("dims", MANY_TILES.values(), ids=MANY_TILES)
def test_many_tiles_match_reference(dims, backend):
    inputs = make_inputs(OP, dims, torch.float32)
    exact = cast(inputs, torch.float64)
    assert_within_budget(
        call(OP, backend, inputs)[0],
        call(OP, "reference", exact)[0],
        call(OP, "reference", inputs)[0],
        torch.float32,
        "y",
    )
    rounded, exact = gradients(OP, "reference", inputs), gradients(OP, "reference", exact)
    for name, actual in gradients(OP, backend, inputs).items():
        assert_within_budget(actual, exact[name], rounded[name], torch.float32, f"d{name}")


@pytest.mark.parametrize("change", [{"window": 12}, {"window": 14}, {"softcap": 4.04}, {"scale": 0.303}])
def test_the_budget_notices_a_wrong_option(change):
    inputs = make_inputs(OP, dict(b=1, t=40, h=2, k=16, window=13, softcap=4.0, scale=0.3), torch.float32)
    exact, rounded = (call(OP, "reference", x)[0] for x in (cast(inputs, torch.float64), inputs))
    assert over_budget(call(OP, "torch", inputs)[0], exact, rounded, torch.finfo(torch.float32).eps) is None
    assert over_budget(call(OP, "torch", inputs | change)[0], exact, rounded, torch.finfo(torch.float32).eps)


def test_a_window_of_one_copies_the_value(backend):
    inputs = make_inputs(OP, dict(b=1, t=20, h=2, g=1, k=16, window=1), torch.float32)
    assert_same(call(OP, backend, inputs)[0], inputs["v"].repeat_interleave(2, dim=2))
    found = gradients(OP, backend, inputs)
    assert max(found["q"].abs().max(), found["k"].abs().max()) < 1e-5


def test_a_window_as_long_as_the_row_is_none(backend):
    inputs = make_inputs(OP, dict(b=1, t=20, h=2, k=16), torch.float32)
    for window in (20, 21, 1000):
        assert_same(call(OP, backend, inputs | {"window": window})[0], call(OP, backend, inputs)[0])


def test_grouped_heads_repeat_their_keys(backend):
    inputs = make_inputs(OP, dict(b=2, t=18, h=6, g=2, k=16), torch.float32)
    repeated = {name: inputs[name].repeat_interleave(3, dim=2) for name in ("k", "v")}
    assert_same(call(OP, backend, inputs)[0], call(OP, backend, inputs | repeated)[0])


def test_a_sink_is_a_key_without_value(backend):
    """With keys (k, 0) and queries (q, sink), one more key (0, 1 / scale) of value 0 in front has the score `sink`."""
    inputs = make_inputs(OP, dict(b=1, t=20, h=3, g=1, k=16, scale=0.5, sinks=True), torch.float32)
    q, k, v, sinks = (inputs[name] for name in ("q", "k", "v", "sinks"))
    q = torch.cat([q, sinks[None, None, :, None].expand(1, 20, 3, 1)], dim=-1)
    k = torch.cat([k, k.new_zeros(1, 20, 1, 1)], dim=-1)
    sink_key = torch.cat([k.new_zeros(1, 1, 1, 16), k.new_full((1, 1, 1, 1), 2.0)], dim=-1)
    expected = attend(q, torch.cat([sink_key, k], 1), torch.cat([v[:, :1] * 0, v], 1), scale=0.5, backend=backend)
    assert_same(call(OP, backend, inputs)[0], expected)


def test_a_wide_softcap_changes_nothing_and_a_tight_one_averages(backend):
    inputs = make_inputs(OP, dict(b=1, t=20, h=2, k=16), torch.float32)
    torch.testing.assert_close(call(OP, backend, inputs | {"softcap": 1e4})[0], call(OP, backend, inputs)[0])
    average = inputs["v"].cumsum(1) / torch.arange(1, 21)[:, None, None]
    torch.testing.assert_close(call(OP, backend, inputs | {"softcap": 1e-5})[0], average, atol=1e-4, rtol=1e-4)


def test_a_padded_row_is_the_row_alone(backend):
    inputs = make_inputs(OP, dict(b=3, t=40, h=2, k=16, window=30, starts=(0, 13, 39)), torch.float32)
    y, starts = call(OP, backend, inputs)[0], inputs.pop("starts").tolist()
    for row, start in enumerate(starts):
        alone = {name: x[row : row + 1, start:] if name in "qkv" else x for name, x in inputs.items()}
        assert_same(y[row : row + 1, start:], call(OP, backend, alone)[0])
        assert (y[row, :start] == 0).all()


def test_packed_sequences_are_each_alone(backend):
    inputs = make_inputs(OP, dict(b=1, t=80, h=2, g=1, k=16, softcap=5.0, cu_seqlens=(0, 3, 3, 70, 80)), torch.float32)
    y, borders = call(OP, backend, inputs)[0], inputs.pop("cu_seqlens").tolist()
    for start, end in pairwise(borders):
        if end > start:
            alone = {name: x[:, start:end] if name in "qkv" else x for name, x in inputs.items()}
            assert_same(y[:, start:end], call(OP, backend, alone)[0])


@pytest.mark.parametrize("window", [None, 12])
def test_queries_in_parts_equal_the_whole(backend, window):
    inputs = make_inputs(OP, dict(b=2, t=40, h=4, g=2, k=16, window=window, sinks=True), torch.float32)
    whole = call(OP, backend, inputs)[0]
    parts = [
        call(OP, backend, inputs | {"q": inputs["q"][:, a:b], "k": inputs["k"][:, :b], "v": inputs["v"][:, :b]})[0]
        for a, b in ((0, 17), (17, 18), (18, 40))
    ]
    assert_same(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("window", [None, 200])
def test_a_decoding_step_is_the_last_row(backend, window, monkeypatch):
    """Also with a cache that lies in memory as (b, g, s, k) and is longer than what is filled."""
    monkeypatch.setattr(_target, "multiprocessors", lambda: 8)
    inputs = make_inputs(OP, dict(b=2, t=300, h=4, g=2, k=16, v=24, window=window, softcap=20.0), torch.float32)
    expected = call(OP, "reference", inputs)[0][:, -1:]
    for name in ("k", "v"):
        cache = torch.full((2, 2, 333, inputs[name].shape[3]), float("nan"))
        cache[:, :, :300] = inputs[name].transpose(1, 2)
        inputs[name] = cache[:, :, :300].transpose(1, 2)
    assert_same(call(OP, backend, inputs | {"q": inputs["q"][:, -1:]})[0], expected)


@pytest.mark.parametrize("name", ["decode", "decode-everything"])
def test_a_cache_shared_among_programs_gives_the_same(name, monkeypatch):
    monkeypatch.setattr(_target, "multiprocessors", lambda: 64)
    assert decode._splits_that_fill(num_heads=4, most=5) == 5 and decode._splits_that_fill(num_heads=100, most=5) == 2
    monkeypatch.setattr(decode, "TILE_BYTES", 1 << 10)  # several tiles of so few keys
    inputs = make_inputs(OP, CASES[name], torch.float32)
    assert_same(call(OP, "triton", inputs)[0], call(OP, "reference", inputs)[0])


def test_decoding_reads_the_cache_where_it_lies():
    cache = torch.randn(2, 2, 333, 16)
    step = cache[:, :, :300].transpose(1, 2)
    tiled = _torch._Tiled.of(torch.randn(2, 1, 4, 16), step, step, None, None, None, 1.0, None)
    assert tiled.k.data_ptr() == tiled.v.data_ptr() == cache.data_ptr()


@pytest.mark.parametrize("sinks", [False, True])
def test_a_query_that_sees_nothing_gives_zero_and_no_gradient(backend, sinks):
    inputs = make_inputs(OP, dict(b=2, t=20, s=25, h=2, k=16, sinks=sinks, starts=(25, 12)), torch.float32)
    y = call(OP, backend, inputs)[0]
    assert (y[0] == 0).all() and (y[1, :7] == 0).all() and (y[1, 7:] != 0).all()
    found = gradients(OP, backend, inputs)
    for dx in found.values():
        assert torch.isfinite(dx).all()
    assert (found["q"][0] == 0).all() and (found["q"][1, :7] == 0).all()
    for name in ("k", "v"):
        assert (found[name][0] == 0).all() and (found[name][1, :12] == 0).all()


def test_only_a_row_of_padding_leaves_no_gradient_to_the_sinks(backend):
    inputs = make_inputs(OP, dict(b=1, t=5, h=2, k=16, sinks=True, starts=(5,)), torch.float32)
    assert (gradients(OP, backend, inputs)["sinks"] == 0).all()


def test_large_scores_stay_finite(backend):
    inputs = make_inputs(OP, dict(b=1, t=40, h=2, k=16, gain=1e3, sinks=True), torch.float32)
    for x in (*call(OP, backend, inputs), *gradients(OP, backend, inputs).values()):
        assert torch.isfinite(x).all()


@pytest.mark.parametrize("short", [0, 1000])
def test_tiles_and_the_fused_kernel_agree(monkeypatch, short):
    inputs = make_inputs(OP, dict(b=2, t=90, h=4, g=2, k=16, window=33), torch.float32)
    monkeypatch.setattr(_torch, "SHORT", short)
    assert_same(call(OP, "torch", inputs)[0], call(OP, "reference", inputs)[0])
    expected = gradients(OP, "reference", inputs)
    for name, dx in gradients(OP, "torch", inputs).items():
        assert_same(dx, expected[name])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"window": 0}, r"window counts the keys a query sees, its own included, so it must be an integer >= 1, got 0"),
        ({"window": -3}, r"window .* integer >= 1, got -3"),
        ({"window": 2.5}, r"window .* integer >= 1, got 2.5"),
        ({"scale": 0.0}, r"scale must be positive, got 0.0"),
        ({"scale": float("nan")}, r"scale must be positive, got nan"),
        ({"softcap": -1.0}, r"softcap must be positive, got -1.0"),
        ({"q": torch.zeros(1, 9, 4, 16)}, r"t must be at most s, got t=9, s=8; give the keys of every query"),
        ({"q": torch.zeros(1, 8, 3, 16)}, r"g must divide the query heads h, got g=2, h=3"),
        ({"v": torch.zeros(1, 7, 2, 16)}, r"v has s=7, but k has s=8"),
        ({"sinks": torch.zeros(2)}, r"sinks has h=2, but q has h=4"),
        ({"sinks": torch.zeros(4).half()}, r"gates, biases and states must be float32 beside torch.float32"),
        ({"starts": torch.tensor([9])}, r"starts must be in 0..s=8 \(s: the row is all padding\), got \[9\]"),
        ({"starts": torch.tensor([-1])}, r"starts must be in 0..s=8 .*, got \[-1\]"),
        ({"starts": torch.tensor([0.0])}, r"starts are indices of keys, expected int32 or int64, got torch.float32"),
        ({"starts": torch.tensor([0, 1])}, r"starts has b=2, but q has b=1"),
        ({"cu_seqlens": torch.tensor([0, 5])}, r"cu_seqlens must rise from 0 to t=8, got \[0, 5\]"),
        ({"cu_seqlens": torch.tensor([0, 8]), "starts": torch.tensor([0])}, "cu_seqlens and starts exclude"),
        ({"cu_seqlens": torch.tensor([0, 4]), "q": torch.zeros(1, 4, 4, 16)}, r"every key has its query, got t=4, s=8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    inputs = {"q": torch.zeros(1, 8, 4, 16), "k": torch.zeros(1, 8, 2, 16), "v": torch.zeros(1, 8, 2, 16)}
    with pytest.raises(ValueError, match=rf"causal_attention: .*{message}"):
        attend(**(inputs | change))


def configurations() -> list:
    """Each configuration in half precision whose tile sizes no earlier one has."""
    found = {}
    for table in (FORWARD, BACKWARD):
        for (_, dtype, _), config in table.rows.items():
            if dtype == "half":
                sizes = tuple(value for name, value in config.items() if name.startswith("BLOCK"))
                found.setdefault((table.name, sizes), config)
    return [pytest.param(name, config, id=f"{name}-{sizes}") for (name, sizes), config in found.items()]


@pytest.mark.parametrize("table, config", configurations())
def test_every_configuration_gives_the_same(table, config):
    inputs = make_inputs(OP, dict(b=1, t=140, s=150, h=2, g=1, k=16, window=130, sinks=True), torch.float16)
    exact, rounded = exact_and_rounded(OP, inputs, torch.float16)
    with forced(table, config):
        found = {"y": call(OP, "triton", inputs)[0]}
        found |= {f"d{name}": dx for name, dx in gradients(OP, "triton", inputs).items()}
    for name, actual in found.items():
        assert_within_budget(actual, exact[name], rounded[name], torch.float16, name)
