"""MultiheadMixer is nn.MultiheadAttention where it attends, and swaps into plain PyTorch models."""

import copy

import pytest
import torch
from torch import nn

import subquad
from subquad.mixers import MIXERS
from subquad.nn import MultiheadMixer

OPTIONS = {"hyena": dict(max_length=64, hidden_dim=8)}


def attention(batch_first=True, **options):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(24, 3, batch_first=batch_first, dtype=torch.float64, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def tokens(b=2, t=11):
    return torch.randn(b, t, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def causal(t=11):
    return nn.Transformer.generate_square_subsequent_mask(t, dtype=torch.float64)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_equals_torchs(batch_first, bias):
    theirs = attention(batch_first, bias=bias)
    ours, x = MultiheadMixer.of(theirs, "attention"), tokens()
    x = x if batch_first else x.transpose(0, 1)
    for average in (True, False):
        expected = theirs(x, x, x, attn_mask=causal(), average_attn_weights=average)
        found = ours(x, x, x, attn_mask=causal(), average_attn_weights=average)
        torch.testing.assert_close(found, expected)
    assert ours(x, x, x, need_weights=False)[1] is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_equals_torchs(side):
    theirs = attention()
    ours, x = MultiheadMixer.of(theirs, "attention"), tokens()
    padding = torch.zeros(2, 11, dtype=torch.bool)
    padding[1, slice(0, 4) if side == "left" else slice(7, None)] = True
    expected, _ = theirs(x, x, x, key_padding_mask=padding, attn_mask=causal() == -torch.inf, need_weights=False)
    found, _ = ours(x, x, x, key_padding_mask=padding, need_weights=False)
    torch.testing.assert_close(found[~padding], expected[~padding])


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_takes_the_place(mixer):
    x, lengths = tokens(), (11, 6)
    module = MultiheadMixer(24, 3, batch_first=True, mixer=mixer, dtype=torch.float64, **OPTIONS.get(mixer, {}))
    y, weights = module(x, x, x)
    assert y.shape == x.shape and weights.shape == (2, 11, 11)
    assert weights.triu(1).abs().max() < 1e-12
    padding = torch.arange(11) < 11 - torch.tensor(lengths)[:, None]
    found, _ = module(x, x, x, key_padding_mask=padding, need_weights=False)
    torch.testing.assert_close(found[0], y[0])
    row = x[1:, 5:]
    torch.testing.assert_close(found[1, 5:], module(row, row, row)[0][0])


@pytest.mark.parametrize("training", [True, False])
def test_it_swaps_into_torchs_own_encoder(training):
    """Also where PyTorch would take its fast path, which reads attention's weights and runs softmax."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 3, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    swapped = copy.deepcopy(model)
    report = subquad.swap(swapped, "attention", modules=nn.MultiheadAttention)
    with torch.no_grad():
        expected = model(tokens(), mask=causal(), is_causal=True)
        torch.testing.assert_close(swapped(tokens(), mask=causal(), is_causal=True), expected)
        subquad.swap(model, "gla", modules="layers.1.self_attn")
        assert (model(tokens(), mask=causal(), is_causal=True) - expected).abs().max() > 1e-3
    assert [layer.name for layer in report.layers] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert report.new_parameters == 0 and report.bytes_before == 2 * 2 * 4096 * 24 * 8 == report.bytes_after


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(24, 24)

    def forward(self, x):
        return x + self.attn(x)


def test_any_module_is_replaced_by_path():
    model = nn.Sequential(Block(), Block())
    report = subquad.swap(model, "delta_net", modules=["1.attn"], d_model=24, num_heads=2)
    assert type(model[1].attn).__name__ == "DeltaNet" and type(model[0].attn) is nn.Linear
    assert model(torch.randn(2, 5, 24)).shape == (2, 5, 24)
    assert report.layers[0].bytes_before is None and "1.attn  delta_net  -" in str(report)


def test_bad_requests_are_refused():
    model = nn.Sequential(Block(), Block())
    for request, message in (
        (dict(modules="0.attn"), "say with d_model="),
        (
            dict(modules="0.attention", d_model=24),
            r"path \['0.attention'\]; expected some of 0, 0.attn",
        ),
        (dict(modules=nn.MultiheadAttention), "no module is a MultiheadAttention; the classes are Block, Linear"),
        (dict(modules="0.attn", layers=1), "give one"),
        (dict(), "name what to replace"),
    ):
        with pytest.raises(ValueError, match=message):
            subquad.swap(model, "gla", **request)
    assert type(model[0].attn) is nn.Linear
    with pytest.raises(ValueError, match="num_heads must divide embed_dim"):
        MultiheadMixer(24, 5)
    with pytest.raises(ValueError, match="add_zero_attn"):
        MultiheadMixer.of(attention(add_zero_attn=True), "gla")
    module, x = MultiheadMixer(24, 3, batch_first=True, dtype=torch.float64), tokens()
    with pytest.raises(ValueError, match="must be one tensor"):
        module(x, x.clone(), x)
    with pytest.raises(ValueError, match="must be None or the causal mask"):
        module(x, x, x, attn_mask=torch.zeros(11, 11))
    with pytest.raises(ValueError, match="padding after real tokens"):
        module(x, x, x, key_padding_mask=torch.arange(11).eq(4).expand(2, -1))
