"""Names: one mixer, or a pattern of them over the layers of a model."""

import pytest
import torch

from subquad.mixers import HYBRIDS, MIXERS, BaseConv, Based, MixerSpec, SlidingWindow, build_layers, create

from .variants import D_MODEL, tokens


def names(layers):
    return [type(layer).__name__ for layer in layers]


@pytest.mark.parametrize("name", MIXERS)
def test_create_builds_the_class_of_that_name(name):
    assert type(create(name, D_MODEL)) is MIXERS[name]


@pytest.mark.parametrize("name", MIXERS)
def test_a_plain_name_fills_every_layer(name):
    layers = build_layers(name, D_MODEL, 3, dtype=torch.float64)
    assert [type(layer) for layer in layers] == [MIXERS[name]] * 3
    assert all(p.dtype == torch.float64 for layer in layers for p in layer.parameters())
    assert len({id(layer) for layer in layers}) == 3


def test_based_published_mix():
    layers = build_layers("hybrid", D_MODEL, 5)
    assert names(layers) == ["BaseConv", "Based", "SlidingWindow", "BaseConv", "Based"]
    assert layers[0].conv.weight.shape[1] == 3
    assert layers[1].widths[0] == 4 * 16
    assert layers[2].window == 64


@pytest.mark.parametrize(
    "pattern",
    [
        "base_conv, based",
        ("base_conv", "based"),
        [MixerSpec("base_conv"), MixerSpec("based")],
        ("base_conv", (MixerSpec("based"),)),
    ],
    ids=str,
)
def test_ways_to_write_a_pattern(pattern):
    assert names(build_layers(pattern, D_MODEL, 4)) == ["BaseConv", "Based", "BaseConv", "Based"]


def test_a_hybrid_may_stand_inside_a_pattern():
    layers = build_layers(("attention", "hybrid"), D_MODEL, 4)
    assert names(layers) == ["Attention", "BaseConv", "Based", "SlidingWindow"]


def test_options_reach_the_layers_that_have_them():
    conv, based = build_layers("base_conv,based", D_MODEL, 2, feature_dim=5, num_heads=2, backend="reference")
    assert isinstance(conv, BaseConv) and isinstance(based, Based)
    assert based.widths[0] == 10
    assert conv.backend == based.backend == "reference"


def test_the_options_of_a_spec_win():
    pattern = (MixerSpec("sliding_window", {"window": 8}), "sliding_window")
    first, second = build_layers(pattern, D_MODEL, 2, window=16)
    assert isinstance(first, SlidingWindow) and (first.window, second.window) == (8, 16)


@pytest.mark.parametrize("name", HYBRIDS)
def test_every_hybrid_runs(name):
    x = tokens()
    for layer in build_layers(name, D_MODEL, len(HYBRIDS[name]), dtype=torch.float64):
        x = x + layer(x)
    assert x.isfinite().all()


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: create("mixtral", 16), "unknown mixer 'mixtral'; expected one of attention, .*, hyena, hybrid"),
        (lambda: create("hybrid", 16), "'hybrid' is a pattern of several layers; build it with build_layers"),
        (
            lambda: create("based", 16, window=4, nhead=2),
            "based has no option window, nhead; it knows num_heads, head_dim, feat",
        ),
        (lambda: build_layers("base_conv,mixtral", 16, 2), "unknown mixer 'mixtral'"),
        (lambda: build_layers("", 16, 2), "unknown mixer ''"),
        (lambda: build_layers((), 16, 2), "expected at least one mixer"),
        (lambda: build_layers("hybrid", 16, 2), r"needs at least 3 layers \(base_conv, based, sliding_window\), got"),
        (lambda: build_layers("base_conv,based", 16, 2, window=4), "no layer has the option window; base_conv knows"),
    ],
)
def test_bad_names_and_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
