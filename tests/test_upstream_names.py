"""flash-attn's and causal-conv1d's functions: the signatures of the real packages, and their meaning."""

import ast
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from subquad.causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from subquad.flash_attn import flash_attn_func, flash_attn_varlen_func

SIGNATURES = {  # of flash-attn 2.8.3 and causal-conv1d 1.7.0
    flash_attn_func: "q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
    "alibi_slopes=None, deterministic=False, return_attn_probs=False",
    flash_attn_varlen_func: "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, "
    "softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, "
    "return_attn_probs=False, block_table=None",
    causal_conv1d_fn: "x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, "
    "final_states_out=None, activation=None",
    causal_conv1d_update: "x, conv_state, weight, bias=None, activation=None, cache_seqlens=None, "
    "conv_state_indices=None",
}


def names_and_defaults(function) -> str:
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_signatures_are_those_upstream(function):
    assert names_and_defaults(function) == SIGNATURES[function]


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_signatures_are_those_of_what_is_installed(function):
    """Read from the source: without a GPU these packages cannot be imported."""
    package = function.__module__.partition(".")[2]
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"{package} is not installed")
    source = Path(found.submodule_search_locations[0]) / f"{package}_interface.py"
    (theirs,) = [
        node for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__
    ]  # fmt: skip
    assert ast.unparse(theirs.args) == SIGNATURES[function]


def attention(q, k, v, window=(-1, -1), scale=None, softcap=0.0):
    """By the definition: key j of query i where i + s - t - left <= j <= i + s - t."""
    t, s, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))
    scores = torch.einsum("bthk, bshk -> bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    place, key = torch.arange(t)[:, None] + s - t, torch.arange(s)
    sees = (key <= place) & ((key >= place - window[0]) if window[0] >= 0 else torch.ones(t, s, dtype=torch.bool))
    weights = scores.masked_fill(~sees, -torch.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhts, bshv -> bthv", weights, v)


def heads(t, s, b=2):
    generator = torch.Generator().manual_seed(0)
    sizes = ((b, t, 4, 8), (b, s, 2, 8), (b, s, 2, 8))
    return [torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("t, s", [(7, 7), (3, 9), (1, 9), (9, 4), (5, 0)])
@pytest.mark.parametrize("options", [{}, {"window_size": (2, 0)}, {"softcap": 1.5, "softmax_scale": 0.7}], ids=str)
def test_flash_attn_func(t, s, options):
    q, k, v = heads(t, s)
    names = {"window_size": "window", "softmax_scale": "scale"}
    expected = attention(q, k, v, **{names.get(name, name): value for name, value in options.items()})
    found = flash_attn_func(q, k, v, causal=True, **options)
    torch.testing.assert_close(found, expected)
    if t == 7:
        ours, theirs = (torch.autograd.grad(y.sum(), (q, k, v)) for y in (found, expected))
        torch.testing.assert_close(ours, theirs)


def test_one_query_or_a_window_that_ends_at_it_is_causal():
    q, k, v = heads(1, 6)
    assert torch.equal(flash_attn_func(q, k, v), flash_attn_func(q, k, v, causal=True))
    q, k, v = heads(6, 6)
    windowed = flash_attn_func(q, k, v, window_size=(-1, 0))
    assert torch.equal(windowed, flash_attn_func(q, k, v, causal=True))


@pytest.mark.parametrize("queries, keys", [((3, 0, 5), (3, 0, 5)), ((1, 2, 1), (4, 2, 3)), ((4, 0, 2), (2, 3, 2))])
def test_flash_attn_varlen_func(queries, keys):
    q, k, v = (x[0].detach() for x in heads(sum(queries), sum(keys), b=1))
    borders = [torch.tensor([0, *lengths]).cumsum(0).int() for lengths in (queries, keys)]
    found = flash_attn_varlen_func(q, k, v, *borders, max(queries), max(keys), causal=True, window_size=(2, 0))
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    expected = [attention(*(part[None] for part in sequence), window=(2, 0))[0] for sequence in parts]
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(), "keys after the query"),
        (dict(causal=True, window_size=(3, 2)), r"keys after the query \(causal=True, window_size=\(3, 2\)\)"),
        (dict(causal=True, dropout_p=0.1), "dropout_p=0.1"),
        (dict(causal=True, alibi_slopes=torch.ones(4)), "alibi_slopes"),
        (dict(causal=True, return_attn_probs=True), "return_attn_probs"),
    ],
)
def test_what_the_kernels_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        flash_attn_func(*heads(4, 4), **options)


def channels(b=2, t=9, d=6, w=4):
    generator = torch.Generator().manual_seed(0)
    sizes = ((b, d, t), (d, w), (d,), (b, d, w - 1))
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]


def convolution(x, weight, bias, before, activation):
    y = F.conv1d(torch.cat([before, x], dim=-1), weight[:, None], bias, groups=len(weight))
    return y if activation is None else F.silu(y)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("t", [1, 2, 9])
def test_causal_conv1d_fn(activation, t):
    x, weight, bias, before = channels(t=t)
    zeros = torch.zeros_like(before)
    torch.testing.assert_close(
        causal_conv1d_fn(x, weight, bias, activation=activation), convolution(x, weight, bias, zeros, activation)
    )
    out = torch.empty_like(before)
    y, final = causal_conv1d_fn(
        x, weight, bias, None, before, return_final_states=True, final_states_out=out, activation=activation
    )
    torch.testing.assert_close(y, convolution(x, weight, bias, before, activation))
    assert final is out and torch.equal(final, torch.cat([before, x], dim=-1)[..., -3:])


@pytest.mark.parametrize("with_state", [False, True])
def test_causal_conv1d_fn_of_several_sequences(with_state):
    x, weight, bias, before = channels()
    seq_idx = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [5, 5, 5, 5, 5, 5, 5, -1, -1]], dtype=torch.int32)
    found = causal_conv1d_fn(x, weight, bias, seq_idx, before if with_state else None, activation="silu")
    expected = torch.zeros_like(x)
    for row, start, stop in ((0, 0, 3), (0, 3, 7), (0, 7, 9), (1, 0, 7)):
        state = before[row, None] if with_state and start == 0 else torch.zeros_like(before[:1])
        expected[row, :, start:stop] = convolution(x[row, None, :, start:stop], weight, bias, state, "silu")[0]
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="exclude each other"):
        causal_conv1d_fn(x, weight, bias, seq_idx, return_final_states=True)
    with pytest.raises(ValueError, match=r"seq_idx must be \(b, t\)"):
        causal_conv1d_fn(x, weight, bias, seq_idx[:, 1:])
    with pytest.raises(ValueError, match="activation must be None, 'silu' or 'swish', got 'relu'"):
        causal_conv1d_fn(x, weight, bias, activation="relu")


@pytest.mark.parametrize("slots", [3, 5])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_causal_conv1d_update_continues_the_sequence(slots, circular, indexed):
    x, weight, bias, _ = channels(t=17)
    whole = causal_conv1d_fn(x, weight, bias, activation="silu")
    state = torch.zeros(4 if indexed else 2, 6, slots, dtype=torch.float64)
    rows = torch.tensor([3, 1], dtype=torch.int32) if indexed else None
    seen, found = torch.zeros(2, dtype=torch.int32), []
    for part in x.split([1, 2, 1, 7, 1, 1, 4], dim=-1):
        part = part[..., 0] if part.shape[-1] == 1 else part
        options = dict(cache_seqlens=seen if circular else None, conv_state_indices=rows)
        y = causal_conv1d_update(part, state, weight, bias, "silu", **options)
        assert y.shape == part.shape
        found.append(y[..., None] if y.ndim == 2 else y)
        seen = seen + found[-1].shape[-1]
    torch.testing.assert_close(torch.cat(found, dim=-1), whole)
    if indexed:
        assert not state[[0, 2]].any()
    with pytest.raises(ValueError, match="must hold at least w - 1 = 3"):
        causal_conv1d_update(x, state[..., :2], weight)
