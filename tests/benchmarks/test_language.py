"""Language models of real text: the data, the published definition of a recall hit, and a run that is resumed."""

import math

import pytest
import torch
import torch.nn.functional as F

from subquad import cli
from subquad.benchmarks import language, records
from subquad.benchmarks.language import (
    LanguageSettings,
    Text,
    explained_share,
    language_table,
    read_corpus,
    recall_hits,
    run_language,
    token_losses,
)
from subquad.benchmarks.model import TinyLM
from subquad.mixers import build_layers

SMALL = LanguageSettings(mixers=("attention", "base_conv"), tokens="bytes", seq_len=16, d_model=8, batch_size=4,
                         steps=20, lrs=(1e-2,), held_out_windows=8)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for i in range(120):
        (text / f"{i}.txt").write_text(f"def f{i}(x):\n    return x + {i}\n" * 30)
    return text


def test_hits_are_bigrams_seen_before_in_the_window_and_seldom_in_the_text():
    #                      1 2 again, 2 3 again, and 7 7 overlapping itself
    windows = torch.tensor([[1, 2, 3, 1, 2, 3, 7, 7, 7], [4, 1, 2, 5, 2, 1, 4, 1, 9]])
    train = torch.tensor([1, 2] * 5 + [2, 3] + [4, 1] * 2)  # 1 2 stands five times, 2 3 once, 4 1 twice
    expected = [[0, 0, 0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1, 0]]  # at 3 1 it is the first time, at 1 2 too often
    assert recall_hits(windows, train, 10, max_count=4).int().tolist() == expected
    more = [[0, 0, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1, 0]]
    assert recall_hits(windows, train, 10, max_count=5).int().tolist() == more
    assert recall_hits(windows, train, 10, max_count=0)[0].int().tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_losses_are_those_of_the_next_tokens_in_any_batch(monkeypatch):
    model = TinyLM(build_layers("attention", 16, 2), 16, 12, mlp="swiglu")
    windows = torch.randint(12, (5, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p = F.log_softmax(model.logits(model(windows[:, :-1])), dim=-1)
    expected = -log_p.gather(2, windows[:, 1:, None]).squeeze(2)
    assert torch.allclose(token_losses(model, windows), expected, atol=1e-5)
    monkeypatch.setattr(language, "EVALUATED_TOKENS", 18)
    assert torch.allclose(token_losses(model, windows), expected, atol=1e-5) and model.training


def test_windows_of_a_text_are_drawn_from_all_of_it():
    text = Text(torch.arange(50), 50, seq_len=8)
    batch = text.sample(2000, torch.Generator().manual_seed(0))
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1]) and torch.equal(batch.inputs + 1, batch.targets)
    assert set(batch.inputs[:, 0].tolist()) == set(range(42))
    assert torch.equal(text.windows(3), torch.arange(27).view(3, 9)) and len(text.windows(99)) == 5
    assert text.chance == 1 / 50
    with pytest.raises(ValueError, match="a window of 50 needs 51 tokens, the text has 50"):
        Text(torch.arange(50), 50, seq_len=50)


@pytest.mark.parametrize("tokens", ["bytes", "bpe"])
def test_tokens_give_the_text_back_and_keep_the_held_out_part_apart(tokens, folder):
    settings = LanguageSettings(tokens=tokens, vocab_size=300, seq_len=16)
    train, held_out = read_corpus(folder, settings)
    again, _ = read_corpus(folder, settings)
    assert torch.equal(train.tokens, again.tokens) and train.vocab_size == {"bytes": 256, "bpe": 300}[tokens]
    assert max(train.tokens.max(), held_out.tokens.max()) < train.vocab_size
    assert 0.5 * len(train.tokens) > len(held_out.tokens) > 0
    if tokens == "bytes":
        whole = bytes(train.tokens.tolist()).decode(), bytes(held_out.tokens.tolist()).decode()
        for i in range(120):
            assert sum(f"def f{i}(x)" in part for part in whole) == 1


def test_share_of_the_gap():
    baseline, model = dict(all=2.0, hits=0.5, rest=2.1), dict(all=2.2, hits=2.0, rest=2.2)
    assert explained_share(model, baseline, 0.1) == pytest.approx(1.5 * 0.1 / 0.2)
    assert explained_share(model, baseline, 0.5) == 1.0 and explained_share(baseline, baseline, 0.1) is None
    assert explained_share(dict(all=2.2, hits=0.4, rest=2.4), baseline, 0.1) == 0.0


def test_a_run_is_resumed_and_tabled(folder, tmp_path):
    out = tmp_path / "out"
    begun = run_language(SMALL, out, text=folder)
    first = next(begun)
    begun.close()  # as if it had been killed
    assert [record["job"] for record in records.read(out)] == ["attention-lr0.01-seed0"]
    with pytest.raises(ValueError, match="holds 1 records; go on by --resume"):
        run_language(SMALL, out, text=folder)
    with pytest.raises(ValueError, match="begun with other settings"):
        run_language(LanguageSettings(tokens="bytes", seq_len=8), out, text=folder, resume=True)
    (second,) = run_language(SMALL, out, text=folder, resume=True)
    assert second["mixer"] == "base_conv" and records.read(out) == [first, second]
    assert 0 < first["hit_share"] < 1 and first["nats"]["all"] < math.log(256)
    parts = first["nats"]
    share = first["hit_share"]
    assert parts["all"] == pytest.approx(share * parts["hits"] + (1 - share) * parts["rest"], rel=1e-4)
    lines = language_table(records.read(out)).splitlines()
    assert lines[2].startswith(f"| attention | {math.exp(parts['all']):.2f} |") and "| - |" in lines[2]
    assert lines[3].startswith("| base_conv |") and "held-out tokens are recall hits" in lines[5]


def test_the_best_learning_rate_stands_in_the_table():
    def record(mixer, lr, seed, nats):
        return {"mixer": mixer, "baseline": mixer == "attention", "lr": lr, "seed": seed, "hit_share": 0.1,
                "nats": dict.fromkeys(("all", "hits", "rest"), nats), "state_bytes": 1024,
                "tokens": {"held_out": 1000}}  # fmt: skip

    found = [record("based", 1e-3, s, n) for s, n in ((0, 1.0), (1, 3.0))]
    found += [record("based", 1e-2, s, n) for s, n in ((0, 2.2), (1, 2.4))] + [record("attention", 1e-3, 0, 1.5)]
    lines = language_table(found).splitlines()
    assert lines[2].endswith("| 0.001 |") and lines[3] == f"| based | {3 * f'{math.exp(2):.2f} | '}10 | 1.0 | 0.001 |"


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(tokens="words"), "tokens must be one of bytes, bpe"),
        (dict(mixers=("magic",)), "unknown mixer 'magic'"),
        (dict(steps=0), "steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LanguageSettings(**changes)


def test_the_command_from_end_to_end(folder, tmp_path, capsys):
    asked = ["text", str(folder), "--mixers", "attention,hyena", "--tokens", "bpe", "--vocab-size", "300"]
    asked += ["--seq-len", "16", "--d-model", "8", "--steps", "2", "--batch-size", "2", "--lrs", "1e-2"]
    asked += ["--held-out-windows", "4", "--out", str(tmp_path / "out")]
    assert cli.main(asked) == 0
    said = capsys.readouterr().out
    assert "| attention |" in said and "| hyena |" in said and "recall hits" in said
    assert cli.main(asked) == cli.MISUSE and "--resume" in capsys.readouterr().err
    assert cli.main([*asked, "--resume"]) == 0
    assert cli.main(["text", str(tmp_path / "nowhere"), "--out", str(tmp_path / "none")]) == cli.MISUSE
    assert "does not exist" in capsys.readouterr().err and not (tmp_path / "none").exists()
    few = tmp_path / "few"
    few.mkdir()
    for name in "ab":
        (few / f"{name}.txt").write_text("x" * 99)
    assert cli.main(["text", str(few), "--out", str(tmp_path / "none")]) == cli.MISUSE
    assert "is held out; give more files, or a single one" in capsys.readouterr().err
