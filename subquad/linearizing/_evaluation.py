"""What a swapped model is worth: perplexity of text, recall of a phone book, bytes of state, time of a token."""

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from subquad.hf._find import find_attention, heads_of
from subquad.hf._stand_in import CHILD

NAMES = (
    "Alice", "Boris", "Carla", "David", "Elena", "Frank", "Grace", "Henry", "Irene", "James", "Karen", "Louis", "Maria",
    "Nolan", "Olive", "Peter", "Quinn", "Rosie", "Simon", "Tanya", "Ursula", "Victor", "Wendy", "Xavier",
)  # fmt: skip
FAMILIES = (
    "Adams", "Brown", "Clark", "Dixon", "Evans", "Foster", "Green", "Hughes", "Irwin", "Jones", "Keller", "Lewis",
    "Moore", "Nelson", "Owens", "Parker", "Reed", "Scott", "Turner", "Walker",
)  # fmt: skip
DECODED = 8  # tokens that are timed, after as many that are not
PREFILL = 1024  # tokens of a prompt that are read at once


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens: Tensor) -> float:
    """exp of the mean cross-entropy of each token of rows (n, t) but their first."""
    losses = [model(row[None], labels=row[None], use_cache=False).loss for row in tokens.to(model.device)]
    return torch.stack(losses).mean().exp().item()


@torch.no_grad()
def phonebook_recall(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, entries: int, books: int, seed: int = 0
) -> float:
    """Share of numbers that the model says right when a name of its phone book comes again.

    Each book lists `entries` names with a number of four digits, then asks for one of them by the same line again. A
    number is right if each of its tokens is the likeliest. Ours, after the phonebook of Jelassi et al. (2402.01032).
    """
    generator = torch.Generator().manual_seed(seed)
    right = 0
    for _ in range(books):
        people = torch.randperm(len(NAMES) * len(FAMILIES), generator=generator)[:entries].tolist()
        names = [f"{NAMES[i % len(NAMES)]} {FAMILIES[i // len(NAMES)]}" for i in people]
        numbers = torch.randint(1000, 10_000, (entries,), generator=generator).tolist()
        asked = int(torch.randint(entries, (), generator=generator))
        lines = [f"{name}: {number}\n" for name, number in zip(names, numbers, strict=True)]
        question = "Phone book\n\n" + "".join(lines) + "\nThe same numbers again\n\n" + f"{names[asked]}:"
        prompt, whole = (
            tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            for text in (question, question + f" {numbers[asked]}")
        )
        answer = whole[0, prompt.shape[1] :].to(model.device)
        logits = model(whole.to(model.device), use_cache=False).logits[0, prompt.shape[1] - 1 : -1]
        right += bool((logits.argmax(-1) == answer).all())
    return right / books


def state_bytes(model: PreTrainedModel, context: int) -> int:
    """Bytes that one sequence carries through all layers after `context` tokens."""
    total = 0
    for _, module in find_attention(model).values():
        weight, heads = next(module.parameters()), heads_of(module)
        if hasattr(module, CHILD):
            total += getattr(module, CHILD).state_size(context, like=weight)
        else:
            total += 2 * context * heads.num_kv_heads * heads.head_dim * weight.element_size()
    return total


@torch.no_grad()
def decode_seconds(
    models: Mapping[str, PreTrainedModel], contexts: Sequence[int], seed: int = 0
) -> dict[tuple[str, int], float]:
    """Median seconds of a token of one sequence, for each model after each context; all take turns."""
    generator, caches = torch.Generator().manual_seed(seed), {}
    for context in contexts:
        prompt = torch.randint(next(iter(models.values())).config.vocab_size, (1, context), generator=generator)
        for name, model in models.items():
            caches[name, context] = DynamicCache(config=model.config)
            for part in prompt.to(model.device).split(PREFILL, dim=1):
                model(part, cache=caches[name, context], logits_to_keep=1)
    times = {which: [] for which in caches}
    for turn in range(2 * DECODED):
        for (name, context), cache in caches.items():
            model = models[name]
            token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
            started = time.perf_counter()
            model(token, cache=cache, logits_to_keep=1)
            if model.device.type == "cuda":
                torch.cuda.synchronize(model.device)
            if turn >= DECODED:
                times[name, context].append(time.perf_counter() - started)
    return {which: statistics.median(seconds) for which, seconds in times.items()}
