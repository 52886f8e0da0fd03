"""Stage 2: low-rank adapters on the projections of swapped attention learn to predict the next token."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from subquad.hf._stand_in import CHILD
from subquad.hf._swap import swapped_attention


def projections(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers of swapped attention beside its mixer: q, k, v and o, as the model calls them."""
    return [
        f"{name}.{child}"
        for name, module in swapped_attention(model)
        for child, layer in module.named_children()
        if child != CHILD and isinstance(layer, nn.Linear | Conv1D)
    ]


@contextlib.contextmanager
def adapters(model: PreTrainedModel, rank: int, seed: int) -> Iterator[dict[str, nn.Parameter]]:
    """The adapters' parameters, by name; what they have learned is merged into the weights at the end.

    W + 2 B A with A (rank, in), B (out, rank) zero at the start (Hu et al. 2021, arXiv 2106.09685).
    """
    from peft import LoraConfig, get_peft_model

    names = projections(model)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    try:
        yield {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    finally:
        wrapped.merge_and_unload()


def learn_next_token(model: PreTrainedModel, tokens: Tensor) -> float:
    """Add up gradients of the mean cross-entropy of each token of (b, t) but the first; its value in nats."""
    tokens = tokens.to(model.device)
    loss = model(tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    return loss.item()
