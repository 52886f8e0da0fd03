"""Vendor backends: what they ask of their packages, and that they are refused where these cannot run.

The packages need a GPU. A stand-in of the same signatures, by our own kernels, hears what the adapters say.
"""

import sys
from types import ModuleType

import pytest
import torch

import subquad.causal_conv1d
import subquad.flash_attn
from subquad.kernels import BackendError, _dispatch
from subquad.kernels.causal_attention import causal_attention
from subquad.kernels.short_conv import short_conv


@pytest.fixture
def installed(monkeypatch):
    """Packages that pass for installed, and tensors that pass for the device's."""
    for package in (subquad.flash_attn, subquad.causal_conv1d):
        name = package.__name__.removeprefix("subquad.")
        module = ModuleType(name)
        vars(module).update({function: getattr(package, function) for function in package.__all__})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(_dispatch, "_vendor_needs", lambda package, dtypes, tensors: {})


def heads(t=7, s=7, b=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(b, n, h, 8, generator=generator, dtype=torch.float64) for n, h in ((t, 4), (s, 2), (s, 2))]


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"softcap": 2.0, "scale": 0.5}], ids=str)
@pytest.mark.parametrize("t", [7, 2])
def test_flash_attn_is_asked_for_the_same(installed, options, t):
    expected = causal_attention(*heads(t), **options, backend="reference")
    torch.testing.assert_close(causal_attention(*heads(t), **options, backend="flash_attn"), expected)


def test_flash_attn_is_asked_for_the_same_of_packed_sequences(installed):
    borders = torch.tensor([0, 3, 3, 7])
    expected = causal_attention(*heads(b=1), window=2, cu_seqlens=borders, backend="reference")
    found = causal_attention(*heads(b=1), window=2, cu_seqlens=borders, backend="flash_attn")
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("t", [1, 2, 9])
@pytest.mark.parametrize("with_state", [False, True])
def test_causal_conv1d_is_asked_for_the_same(installed, t, with_state):
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, t, 6), (6, 4), (6,), (2, 3, 6))
    x, weight, bias, state = (torch.randn(size, generator=generator) for size in sizes)
    arguments = dict(activation="silu", state=state if with_state else None)
    expected = short_conv(x, weight, bias, **arguments, backend="reference")
    torch.testing.assert_close(short_conv(x, weight, bias, **arguments, backend="causal_conv1d"), expected)


def test_what_the_packages_cannot_do_is_refused(installed):
    for options, message in (
        (dict(sinks=torch.zeros(4, dtype=torch.float64)), "needs no sinks"),
        (dict(starts=torch.tensor([0, 2])), "needs no starts"),
    ):
        with pytest.raises(BackendError, match=message):
            causal_attention(*heads(), **options, backend="flash_attn")
    x = torch.randn(1, 6, 4)
    with pytest.raises(BackendError, match="needs a filter 2 to 4 wide"):
        short_conv(x, torch.randn(4, 5), backend="causal_conv1d")
    with pytest.raises(BackendError, match="needs no packed sequences"):
        short_conv(x, torch.randn(4, 3), cu_seqlens=torch.tensor([0, 6]), backend="causal_conv1d")


def test_without_package_or_gpu_they_are_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(_dispatch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="needs flash-attn installed, CUDA tensors, float16 or bfloat16; use"):
        causal_attention(*heads(), backend="flash_attn")
    x = torch.randn(1, 6, 4)
    with pytest.raises(BackendError, match="needs causal-conv1d installed, CUDA tensors; use 'torch' or 'auto'"):
        short_conv(x, torch.randn(4, 3), backend="causal_conv1d")
    with pytest.raises(ValueError, match=r"unknown backend 'flash_attn'; expected one of auto, .*, causal_conv1d"):
        short_conv(x, torch.randn(4, 3), backend="flash_attn")
