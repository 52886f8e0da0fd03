"""What holds for tiny random models holds for a real one."""

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import subquad
import subquad.hf

QUESTIONS = ["The capital of France is", "def fibonacci(n):\n    if n < 2:\n        return n\n   ", "Hello"]


def ask(tokenizer):
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer(QUESTIONS, return_tensors="pt", padding=True)


def test_exact_attention_is_within_twice_the_error_of_eager(smollm2):
    eager, tokenizer = smollm2
    inputs = tokenizer(Path(__file__).read_text()[:1500], return_tensors="pt")
    ours, gold = copy.deepcopy(eager), copy.deepcopy(eager).double()
    ours.set_attn_implementation("subquad")
    gold.set_attn_implementation("sdpa")
    with torch.no_grad():
        exact = gold(**inputs).logits
        own, error = ((model(**inputs).logits.double() - exact).abs().max() for model in (eager, ours))
    assert error <= 2 * own + 16 * torch.finfo(torch.float32).eps * exact.abs().max()


def test_it_writes_what_eager_writes(smollm2):
    eager, tokenizer = smollm2
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("subquad")
    texts = [model.generate(**ask(tokenizer), max_new_tokens=12, do_sample=False) for model in (eager, ours)]
    assert torch.equal(*texts)
    assert "Paris" in tokenizer.decode(texts[0][0])


def test_swapped_layers_write_and_are_saved(smollm2, tmp_path):
    """All attention kept but a window that is longer than the text: it writes what it wrote, also when loaded again."""
    eager, tokenizer = smollm2
    inputs = ask(tokenizer)
    expected = eager.generate(**inputs, max_new_tokens=12, do_sample=False)
    ours = copy.deepcopy(eager)
    report = subquad.swap(ours, "sliding_window", window=256)
    assert all(layer.kept == ("q", "k", "v", "o") for layer in report.layers) and len(report.layers) == 30
    assert torch.equal(ours.generate(**inputs, max_new_tokens=12, do_sample=False), expected)
    ours.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(loaded(**inputs).logits, ours(**inputs).logits)
    subquad.unswap(ours)
    assert torch.equal(ours(**inputs).logits, eager(**inputs).logits)


def test_half_of_its_layers_are_recurrent(smollm2):
    eager, tokenizer = smollm2
    ours, inputs = copy.deepcopy(eager), ask(tokenizer)
    report = subquad.swap(ours, "gated_delta_net", layers=slice(0, None, 2))
    assert report.bytes_before == 15 * 2 * 4096 * 3 * 64 * 4 > 10 * report.bytes_after
    how = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    together = ours.generate(**inputs, **how)
    assert torch.equal(together, ours.generate(**inputs, use_cache=False, **how))
    real = inputs["attention_mask"][2].bool()
    alone = ours.generate(inputs["input_ids"][2:, real], attention_mask=inputs["attention_mask"][2:, real], **how)
    assert torch.equal(alone[0, -6:], together[2, -6:])
