"""`subquad swap`: a folder in, a folder out, and a line for what cannot be."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from subquad import cli

from .models import VOCAB, build, prompts


@pytest.fixture
def folder(tiny_folder):
    return tiny_folder.parent


def test_a_model_is_swapped_and_saved(folder, capsys):
    out = folder / "swapped"
    asked = ["--mixer", "sliding_window", "--layers", "1:", "--options", "window=3", "--context", "64"]
    assert cli.main(["swap", str(folder / "model"), "--out", str(out), *asked]) == 0
    said = capsys.readouterr().out
    assert "model.layers.2.self_attn  sliding_window  q k v o" in said and f"wrote {out}" in said
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.subquad_layers == {
        str(layer): {"mixer": "sliding_window", "options": {"window": 3}} for layer in (1, 2)
    }
    with torch.no_grad():
        assert not torch.allclose(model(prompts()).logits, build("llama")(prompts()).logits)
    assert AutoTokenizer.from_pretrained(out).vocab_size == VOCAB


def test_what_cannot_be_is_said_before_anything_is_written(folder, capsys):
    model, out = str(folder / "model"), folder / "swapped"
    for asked, message in (
        ([model, "--mixer", "gla", "--out", model], "exists already"),
        ([model, "--mixer", "gla", "--layers", "1:x", "--out", str(out)], "--layers: expected numbers"),
        ([model, "--mixer", "gla", "--layers", "7", "--out", str(out)], "no attention in layers"),
        ([model, "--mixer", "gla", "--options", "window=3", "--out", str(out)], "gla has no option window"),
        ([model, "--mixer", "gla", "--options", "window", "--out", str(out)], "--options: expected name=value"),
        ([model, "--mixer", "glaa", "--out", str(out)], "unknown mixer 'glaa'"),
        ([str(folder / "nothing"), "--mixer", "gla", "--out", str(out)], "nothing"),
    ):
        assert cli.main(["swap", *asked]) == cli.MISUSE
        assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_model_is_linearized_and_saved(folder, capsys):
    out = folder / "linear"
    text = folder / "text.txt"
    text.write_text(" ".join(f"w{3 + i * i % 50}" for i in range(9000)))
    asked = ["--layers", "::2", "--options", "window=4", "--tokens", "3000", "--text", str(text), "--out", str(out)]
    assert cli.main(["linearize", str(folder / "model"), *asked]) == 0
    said = capsys.readouterr().out
    assert "model.layers.2.self_attn  hedgehog_window  q k v o" in said and "stage 1, relative error" in said
    assert list(AutoModelForCausalLM.from_pretrained(out).config.subquad_layers) == ["0", "2"]
    assert cli.main(["linearize", str(folder / "model"), *asked]) == cli.MISUSE
    assert "is not empty" in capsys.readouterr().err


def test_the_cheapest_layers_are_found_and_linearized(folder, capsys):
    out = folder / "cheap"
    text = folder / "text.txt"
    text.write_text(" ".join(f"w{3 + i * i % 50}" for i in range(9000)))
    asked = ["--cheapest", "2", "--options", "window=4", "--tokens", "1024", "--text", str(text), "--out", str(out)]
    assert cli.main(["linearize", str(folder / "model"), *asked, "--layers", "0"]) == cli.MISUSE
    assert "--layers and --cheapest exclude each other" in capsys.readouterr().err
    assert cli.main(["linearize", str(folder / "model"), *asked]) == 0
    said = capsys.readouterr().out
    layers = list(AutoModelForCausalLM.from_pretrained(out).config.subquad_layers)
    assert len(layers) == 2 and f"layers {', '.join(layers)}" in said
