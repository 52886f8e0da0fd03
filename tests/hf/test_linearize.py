"""Linearisation: what learns and what stays, what it learns from, and that a kill loses nothing."""

import copy
import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import subquad
from subquad.benchmarks.corpus import find_files
from subquad.linearizing import Distillation, _trainer, adapt, layer_costs, linearize
from subquad.linearizing._text import windows
from subquad.linearizing._transfer import Transfer, new_parameters
from subquad.swapping import swap

from .models import VOCAB, build, every_model, prompts

SHORT = Distillation(tokens=20 * 32, seq_len=16, batch_size=2, lr=1e-2)


@pytest.fixture(scope="module")
def tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz .,=()_:'\"[]0123456789\n"
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: i for i, letter in enumerate(letters, 3)}
    assert len(vocabulary) <= VOCAB
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def text(tmp_path):
    """Three files that are trained on, and one that is held out: its hash says so."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(120):
        (folder / f"{i}.txt").write_text(f"the {i} fox jumps over the lazy dog and then ({i}) again. " * 20)
    return folder


def students(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".stand_in." in name}


def others(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".stand_in." not in name}


@pytest.mark.parametrize("mixer", ["hedgehog_window", "gla", "linear_attention"])
def test_stage_one_teaches_only_what_is_new(mixer, tokenizer, text):
    model = build("llama")
    before, flags = others(model), [p.requires_grad for p in model.parameters()]
    options = {"linear_attention": dict(feature_map="hedgehog"), "hedgehog_window": dict(window=4)}.get(mixer, {})
    report = linearize(model, tokenizer, mixer, layers=[0, 2], text=text, how=SHORT, **options)
    assert report.transfer[-1][1] < 0.9 * report.transfer[0][1] and report.transfer[-1][0] == 20
    assert report.adaptation == []
    for name, weight in others(model).items():
        assert torch.equal(weight, before[name]), name
    untaught = build("llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        swap(untaught, mixer, layers=[0, 2], **options)
    for name, weight in students(model).items():
        assert not torch.equal(weight, dict(untaught.named_parameters())[name]), name
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for n, p in model.named_parameters() if ".stand_in." not in n] == flags
    assert "stage 1, relative error" in str(report)
    with torch.no_grad():
        assert (model(prompts()).logits - build("llama")(prompts()).logits).abs().max() > 1e-3


@every_model
@pytest.mark.parametrize("mixer", ["gla", "hedgehog_window"])
def test_the_loss_is_the_distance_from_the_layers_own_softmax(name, mixer):
    """On the inputs that the softmax model gives the layer; rotary positions, caps, sinks and windows are its own."""
    plain = build(name, torch.float64)
    inputs, outputs = {}, {}
    for index, module in subquad.hf._find.find_attention(plain).values():
        module.register_forward_hook(
            lambda module, args, kwargs, out, index=index: (
                inputs.update({index: (args, kwargs)}), outputs.update({index: out[0]}), None
            )[-1],
            with_kwargs=True,
        )  # fmt: skip
    with torch.no_grad():
        plain(prompts(), use_cache=False)
    model = build(name, torch.float64)
    swap(model, mixer, layers=[1], **(dict(window=4) if mixer == "hedgehog_window" else {}))
    losses = Transfer(model, None).losses(prompts(), learn=False)
    ((which, loss),) = losses.items()
    args, kwargs = inputs[which]
    with torch.no_grad():
        student = model.get_submodule(which)(*args, **kwargs)[0]
    target = outputs[which].float()
    expected = (student.float() - target).square().mean() / target.square().mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5) and loss > 1e-4


def test_another_model_may_teach(tokenizer, text):
    teacher, model = build("llama"), build("llama")
    swap(model, "attention", layers=[1])
    (loss,) = Transfer(model, teacher).losses(prompts(), learn=False).values()
    assert loss < 1e-9
    with torch.no_grad():
        teacher.model.layers[1].self_attn.o_proj.weight.mul_(2)
    (loss,) = Transfer(model, teacher).losses(prompts(), learn=False).values()
    assert loss == pytest.approx(0.25, rel=1e-3)


def test_stage_two_adapts_and_merges(tokenizer, text, tmp_path):
    model = build("llama")
    before, how = others(model), Distillation(tokens=64, lora_tokens=40 * 32, lora_lr=3e-3, seq_len=16, batch_size=2)
    report = linearize(model, tokenizer, layers=[0, 2], text=text, how=how, window=4, out=tmp_path / "out")
    assert report.adaptation[-1][1] < report.adaptation[0][1]
    changed = {name for name, weight in others(model).items() if not torch.equal(weight, before[name])}
    assert changed == {
        f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in (0, 2) for part in ("q", "k", "v", "o")
    }
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    with torch.no_grad():
        assert torch.equal(loaded(prompts()).logits, model(prompts()).logits)
    assert not (tmp_path / "out" / _trainer.CHECKPOINT).exists()


@pytest.mark.parametrize("kill_at", [(0, 7), (1, 5)], ids=str)
def test_a_killed_run_ends_in_the_same_bits(kill_at, tokenizer, text, tmp_path, monkeypatch):
    how = Distillation(tokens=12 * 32, lora_tokens=9 * 32, lora_lr=1e-3, seq_len=16, batch_size=2)
    whole = build("llama")
    expected = linearize(whole, tokenizer, layers=[0, 2], text=text, how=how, window=4)
    monkeypatch.setattr(_trainer, "SAVE_EVERY", -1.0)
    stage, step = kill_at
    counted, run = [], _trainer.Trainer.run

    def run_until_killed(self, title, parameters, batches, gradients, lr):
        def counting(tokens):
            counted.append(self.stage)
            if counted.count(stage) == step + 1 and self.stage == stage:
                raise KeyboardInterrupt
            return gradients(tokens)

        return run(self, title, parameters, batches, counting, lr)

    monkeypatch.setattr(_trainer.Trainer, "run", run_until_killed)
    with pytest.raises(KeyboardInterrupt):
        linearize(build("llama"), tokenizer, layers=[0, 2], text=text, how=how, window=4, out=tmp_path / "out")
    monkeypatch.setattr(_trainer.Trainer, "run", run)
    model = build("llama")
    report = linearize(model, tokenizer, layers=[0, 2], text=text, how=how, window=4, out=tmp_path / "out", resume=True)
    assert (report.transfer, report.adaptation) == (expected.transfer, expected.adaptation)
    for (name, a), b in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_what_cannot_be_is_refused_before_anything_changes(tokenizer, text, tmp_path):
    model = build("llama")
    keys, taken = list(model.state_dict()), tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("")
    for request, error, message in (
        (dict(mixer="sliding_window"), ValueError, "sliding_window adds nothing that could learn"),
        (dict(mixer="glaa"), ValueError, "unknown mixer"),
        (dict(text=tmp_path / "nowhere"), FileNotFoundError, "does not exist"),
        (dict(text=taken), ValueError, "holds no .py, .rst, .txt, .md files"),
        (dict(how=Distillation(tokens=10**6)), ValueError, "need 1000448 tokens of text, got"),
        (dict(out=taken), FileExistsError, "is not empty"),
        (dict(out=tmp_path / "new", resume=True), ValueError, "nothing to resume"),
    ):
        with pytest.raises(error, match=message):
            linearize(model, tokenizer, **(dict(text=text, how=SHORT) | request))
    assert list(model.state_dict()) == keys and not hasattr(model.config, "subquad_layers")
    for wrong in (dict(lr=0), dict(seq_len=0), dict(tokens=-1)):
        with pytest.raises(ValueError, match="Distillation: "):
            Distillation(**wrong)


def test_a_checkpoint_of_other_settings_is_refused(tokenizer, text, tmp_path):
    trainer = _trainer.Trainer(tmp_path / "out", {"mixer": "gla"}, False)
    weight = torch.nn.Parameter(torch.zeros(1))

    def gradients(tokens):
        weight.sum().backward()
        return 1.0

    trainer.run("stage", {"w": weight}, torch.zeros(2, 1, 1), gradients, 0.1)
    with pytest.raises(ValueError, match="was made with other mixer"):
        _trainer.Trainer(tmp_path / "out", {"mixer": "based"}, True)


def test_windows_of_text(tokenizer, text):
    train = windows(tokenizer, text, 16, 50, held_out=False)
    assert train.shape == (50, 16)
    assert torch.equal(train, windows(tokenizer, text, 16, 50, held_out=False))
    assert not torch.equal(train, windows(tokenizer, text, 16, 50, held_out=False, seed=1))
    held_out = windows(tokenizer, text, 16, 50, held_out=True)

    def numbers(ids):
        return {word for word in tokenizer.decode(ids.flatten()).replace("(", " ").split() if word.isdigit()}

    assert not numbers(train) & numbers(held_out)
    one = text / "one.txt"
    one.write_text("".join(map(str, range(900))))
    first, last = (windows(tokenizer, one, 16, 5, held_out=flag) for flag in (False, True))
    assert not torch.equal(first, last)


def test_the_default_text_is_the_standard_librarys_source():
    files = find_files(None)
    names = {file.name for file in files}
    assert len(files) > 500 and {"argparse.py", "dataclasses.py"} <= names
    assert not [file for file in files if "site-packages" in file.parts or "test" in file.parts]


def test_new_parameters_are_those_that_were_not_there():
    model = build("llama")
    before = set(dict(model.named_parameters()))
    swap(model, "gated_delta_net", layers=[1])
    assert set(new_parameters(model)) == set(dict(model.named_parameters())) - before
    assert new_parameters(copy.deepcopy(model)).keys() == new_parameters(model).keys()


def test_adapting_alone_is_stage_two(tokenizer, text):
    how = Distillation(tokens=64, lora_tokens=10 * 32, lora_lr=1e-3, seq_len=16, batch_size=2)
    both, apart = build("llama"), build("llama")
    report = linearize(both, tokenizer, layers=[0, 2], text=text, how=how, window=4)
    linearize(apart, tokenizer, layers=[0, 2], text=text, how=dataclasses.replace(how, lora_tokens=0), window=4)
    assert adapt(apart, tokenizer, text=text, how=how) == report.adaptation
    for a, b in zip(both.parameters(), apart.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="no layer of this model is swapped"):
        adapt(build("llama"), tokenizer, text=text, how=how)
    with pytest.raises(ValueError, match="lora_tokens is 0"):
        adapt(apart, tokenizer, text=text, how=SHORT)


def test_layer_costs_are_those_of_single_swaps_and_leave_no_trace(tokenizer, text):
    model = build("llama").train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for weight in ("q_proj", "k_proj"):  # a sharp layer, to which the far past matters
            getattr(model.model.layers[1].self_attn, weight).weight.mul_(6)
            before[f"model.layers.1.self_attn.{weight}.weight"].mul_(6)
    rng = torch.get_rng_state()
    costs = layer_costs(model, tokenizer, window=2, text=text, tokens=64, seq_len=32)
    assert list(costs) == [0, 1, 2] and max(costs, key=lambda index: abs(costs[index])) == 1
    assert model.training and torch.equal(rng, torch.get_rng_state())
    assert dict.fromkeys(before, True) == {n: torch.equal(p, before[n]) for n, p in model.named_parameters()}
    swapped = build("llama")
    swapped.load_state_dict(model.state_dict())
    swapped.eval()
    rows = windows(tokenizer, text, 32, 2, held_out=False)
    with torch.no_grad():
        whole = swapped(rows, labels=rows).loss
        swap(swapped, "sink_window", layers=1, window=2)
        assert costs[1] == pytest.approx((swapped(rows, labels=rows).loss - whole).item(), rel=1e-4)
    assert layer_costs(model, tokenizer, "attention", text=text, tokens=32, seq_len=32) == pytest.approx(
        {0: 0, 1: 0, 2: 0}, abs=1e-6
    )
    with pytest.raises(ValueError, match="sink_window has no option widow"):
        layer_costs(model, tokenizer, widow=2, text=text, tokens=32, seq_len=32)
