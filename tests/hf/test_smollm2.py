"""What holds for tiny random models holds for a real one."""

import copy
from pathlib import Path

import torch

import subquad.hf  # noqa: F401

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
