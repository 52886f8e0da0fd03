"""The measurement of linearised models: each number by itself, and the smallest real run of the program."""

import math

import pytest
import torch

import subquad
from subquad.benchmarks import records
from subquad.linearizing import measure
from subquad.linearizing._evaluation import decode_seconds, perplexity, phonebook_recall, state_bytes

from .models import build, prompts


def test_perplexity_is_that_of_the_likelihood():
    model, tokens = build("llama", torch.float64), prompts()
    with torch.no_grad():
        scores = model(tokens).logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None])
    assert perplexity(model, tokens) == pytest.approx(math.exp(-scores.mean()), rel=1e-6)


class Letters:
    """A tokenizer of characters."""

    def __call__(self, text, **_):
        return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}


class Reader(torch.nn.Module):
    """Says what stands behind the last line that began like the end of the text; or, if it is forgetful, a 7."""

    device = torch.device("cpu")

    def __init__(self, forgetful: bool):
        super().__init__()
        self.forgetful = forgetful

    def forward(self, tokens, **_):
        text = "".join(map(chr, tokens[0].tolist()))
        name = text.rpartition("\n")[2].partition(":")[0]
        number = text.partition(f"\n{name}:")[2].partition("\n")[0]
        logits = torch.zeros(1, len(text), 128)
        begin = text.rindex(":")
        for i, letter in enumerate(number):
            logits[0, begin + i, ord("7" if self.forgetful and letter.isdigit() else letter)] = 1
        return type("Output", (), {"logits": logits})


def test_phonebook_recall_is_one_for_who_remembers_and_none_for_who_does_not():
    assert phonebook_recall(Reader(False), Letters(), entries=12, books=9) == 1
    assert phonebook_recall(Reader(True), Letters(), entries=12, books=9) == 0


def test_state_bytes_counts_all_layers():
    model = build("llama")
    assert state_bytes(model, 100) == 3 * 2 * 100 * 2 * 8 * 4
    subquad.swap(model, "sliding_window", layers=[1], window=11)
    assert state_bytes(model, 100) == 2 * 2 * (100 + 100 + 10) * 2 * 8 * 4 // 2


def test_decoding_is_timed_after_each_context():
    swapped = build("llama")
    subquad.swap(swapped, "gla", layers=[0])
    times = decode_seconds({"softmax": build("llama"), "gla": swapped}, (5, 40))
    assert set(times) == {(name, context) for name in ("softmax", "gla") for context in (5, 40)}
    assert all(0 < seconds < 10 for seconds in times.values())


def test_the_smallest_run_is_resumed_and_tabled(tiny_folder, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{3 + i * i % 50}" for i in range(40_000)))
    windows = measure.windows
    monkeypatch.setattr(measure, "windows", lambda t, _, *sizes, **how: windows(t, text, *sizes, **how))
    for name in ("linearize", "adapt", "layer_costs"):
        run = getattr(measure, name)
        monkeypatch.setattr(measure, name, lambda *a, run=run, **k: run(*a, text=text, **k))
    monkeypatch.setattr(measure, "CONTEXTS", (8, 16))
    arguments = ["measure", "--model", str(tiny_folder), "--out", str(tmp_path / "out"), "--tokens", "1024"]
    arguments += ["--lora-tokens", "1024", "--windows", "2", "--entries", "2", "--books", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--no-decoding", "--layers", "half"])
    measure.main()
    assert [line.get("layers") for line in records.read(tmp_path / "out")] == [None, "none", *["half"] * 8]
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [*arguments, "--no-decoding"])
    measure.main()
    lines = records.read(tmp_path / "out")
    assert len(lines) == 1 + 1 + 3 * 8
    costs = dict(lines[0]["costs"])
    assert list(costs) == [0, 1, 2]
    assert {line["variant"] for line in lines[1:]} == {
        "original", "sliding_window", "sink_window", "hedgehog_window", "hedgehog_window, stage 1",
        "hedgehog_window, stage 2", "hedgehog_window (4 sinks)", "hedgehog_window (4 sinks), stage 1",
        "hedgehog_window (4 sinks), stage 2",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert said.count("\n| half |") == said.count("\n| cheapest half |") == said.count("\n| all |") == 8
    assert said.count("| - | - |") == 25
    chosen = {line["layers"]: line["indices"] for line in lines[1:]}
    assert chosen == {"none": [], "half": [0, 2], "cheapest half": [min(costs, key=costs.get)], "all": [0, 1, 2]}
    monkeypatch.setattr("sys.argv", arguments)
    measure.main()
    assert len(records.read(tmp_path / "out")) == 27
    said = capsys.readouterr().out
    assert said.count("\n| all |") == 8 and "| - |" not in said and "perplexity 1" not in said
