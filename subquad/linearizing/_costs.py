"""Which layers can be swapped cheaply: what the swap of each one alone costs."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from subquad.hf._find import find_attention
from subquad.swapping import swap, unswap

from ._evaluation import perplexity
from ._text import windows


def layer_costs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mixer: str = "sink_window",
    *,
    text: Path | str | None = None,
    tokens: int = 2048,
    seq_len: int = 512,
    seed: int = 0,
    **options: Any,
) -> dict[int, float]:
    """What swapping each layer alone costs, without training: layers differ by orders of magnitude.

    cost_i = log perplexity(layer i swapped) - log perplexity(model) ,   in nats a token

    Swap the cheap ones: `sorted(costs, key=costs.get)[:n]` are the `layers` to give to `swap` or `linearize`. Costs of
    several layers add up only roughly. With the default mixer a cost says what is lost when a layer no longer sees what
    is far; that of a mixer whose new parameters are untrained says little.

    Args:
        model: a decoder of transformers with no layer swapped; afterwards it is as before.
        tokenizer: the model's.
        mixer: a key of MIXERS.
        text: as `linearize` takes it; what it holds out is not read.
        tokens, seq_len: so many tokens of text, in windows of seq_len; a forward pass of them for each layer is the
            price.
        seed: decides which text.
        options: of the mixer.

    Returns:
        Layer index -> nats a token, in the order of the layers.

    Raises:
        ValueError: what `subquad.swap` refuses, or too little text.
    """
    rows = windows(
        tokenizer, None if text is None else Path(text), seq_len, -(-tokens // seq_len), held_out=False, seed=seed
    )
    training = model.training
    model.eval()
    try:
        whole = perplexity(model, rows)
        return {
            index: math.log(_swapped_perplexity(model, rows, mixer, index, options) / whole)
            for index in tqdm(find_attention(model), desc="layer costs", unit="layer")
        }
    finally:
        model.train(training)


def _swapped_perplexity(
    model: PreTrainedModel, rows: Tensor, mixer: str, index: int, options: dict[str, Any]
) -> float:  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        swap(model, mixer, layers=index, **options)
    try:
        return perplexity(model, rows)
    finally:
        unswap(model)
