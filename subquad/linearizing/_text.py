"""Text as windows of tokens."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from subquad.benchmarks.corpus import contents


def windows(
    tokenizer: PreTrainedTokenizerBase, text: Path | None, seq_len: int, num: int, *, held_out: bool, seed: int = 0
) -> Tensor:
    """(num, seq_len) token ids; the seed decides which.

    Files are read in an order that the seed shuffles and joined by the end-of-text token until there are enough; what
    is held out is as `subquad.benchmarks.corpus` says.
    """
    ids: list[int] = []
    for content in contents(text, held_out=held_out, seed=seed):
        ids += tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        if len(ids) >= num * seq_len:
            break
    if len(ids) < num * seq_len:
        what = "held-out text" if held_out else "text"
        raise ValueError(f"text: {num} windows of {seq_len} need {num * seq_len} tokens of {what}, got {len(ids)}")
    return torch.tensor(ids[: num * seq_len]).view(num, seq_len)
