"""linearize: swap a model's attention, and repair it by a short distillation."""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from subquad.hf._swap import swapped_attention
from subquad.swapping import SwapReport, swap, unswap

from ._costs import layer_costs
from ._lora import adapters, learn_next_token
from ._text import windows
from ._trainer import CHECKPOINT, Curve, Trainer
from ._transfer import Transfer, new_parameters, only_learning

__all__ = ["Distillation", "LinearizeReport", "adapt", "layer_costs", "linearize"]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How the repair is trained.

    tokens: of stage 1, on which the mixers' new parameters learn to give what softmax gave.
    lr: of stage 1, at its peak; it falls as a cosine. 0.01 is LoLCATs' for feature maps.
    lora_tokens: of stage 2, on which adapters of rank `lora_rank` on q, k, v and o learn to predict the next token at
        the learning rate `lora_lr`; 0 leaves stage 2 out.
    seq_len, batch_size: of a step, in both stages.
    seed: decides the text that is read, and adapters' first values.
    """

    tokens: int = 200_000
    lr: float = 1e-2
    lora_tokens: int = 0
    lora_rank: int = 8
    lora_lr: float = 1e-4
    seq_len: int = 512
    batch_size: int = 2
    seed: int = 0

    def __post_init__(self):
        for name in ("lr", "lora_rank", "lora_lr", "seq_len", "batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Distillation: {name} must be positive, got {getattr(self, name)}")
        for name in ("tokens", "lora_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"Distillation: {name} must not be negative, got {getattr(self, name)}")


class LinearizeReport(NamedTuple):
    """What a linearisation did. Losses are means over the steps between two points of a curve."""

    swap: SwapReport
    transfer: Curve  # step, relative squared error of the swapped layers' outputs
    adaptation: Curve  # step, cross-entropy of the next token in nats
    seconds: float

    def __str__(self) -> str:
        lines = [str(self.swap)]
        for what, curve in (("stage 1, relative error", self.transfer), ("stage 2, nats a token", self.adaptation)):
            if curve:
                lines.append(f"{what}: {curve[0][1]:.4f} -> {curve[-1][1]:.4f} after {curve[-1][0]} steps")
        return "\n".join(lines)


def linearize(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mixer: str = "hedgehog_window",
    *,
    layers=None,
    teacher: PreTrainedModel | None = None,
    text: Path | str | None = None,
    how: Distillation | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    **options: Any,
) -> LinearizeReport:
    """Swap attention for a mixer and teach it what softmax did (LoLCATs, arXiv 2410.10254).

    Stage 1 trains the mixers' new parameters alone: each swapped layer's output on the teacher's input comes near the
    teacher's output. Stage 2, if asked for, trains low-rank adapters on q, k, v and o of the swapped layers to predict
    the next token, and merges them. The model is changed in place.

    Args:
        model: a decoder of transformers, as `subquad.swap` takes it, with no layer swapped.
        tokenizer: the model's.
        mixer: a key of MIXERS with something to learn beside q, k, v and o.
        layers: an index, several, a slice, or a function of an index; all if None. `layer_costs` says which are cheap.
        teacher: a model of the same architecture whose softmax teaches; this model's own if None.
        text: a file, or a folder of .py, .rst, .txt and .md files; the standard library's source if None. One file of
            twenty is held out.
        how: tokens, learning rates, adapters and seed; Distillation() if None.
        out: folder to keep checkpoints in while it runs, and to save the model to at the end; nothing is kept if None.
        resume: go on from the checkpoint in `out`; it ends in the same weights as if it had never stopped.
        options: of the mixer.

    Returns:
        What was kept and added, and how the losses fell.

    Raises:
        ValueError: what `subquad.swap` refuses, a mixer with nothing to learn, too little text, or a checkpoint of
            other settings; the model is unchanged then. FileExistsError: `out` holds something and resume is false.
    """
    how = Distillation() if how is None else how
    text, out = (None if path is None else Path(path) for path in (text, out))
    asked = dict(mixer=mixer, options=options, layers=_comparable(layers), text=str(text), how=asdict(how))
    trainer = Trainer(out, asked, resume)
    first, second = (
        _batches(tokenizer, text, how, tokens, how.seed + stage)
        for stage, tokens in enumerate((how.tokens, how.lora_tokens))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        report = swap(model, mixer, layers=layers, **options)
    new = new_parameters(model)
    if not new and not how.lora_tokens:
        unswap(model)
        raise ValueError(f"linearize: {mixer} adds nothing that could learn; use a linear mixer, or stage 2")
    transfer, adaptation = [], []
    if new and how.tokens:
        with only_learning(model, new):
            transfer = trainer.run("stage 1", new, first, Transfer(model, teacher).learn, how.lr)
    if how.lora_tokens:
        adaptation = _adapt(model, second, how, trainer)
    if out is not None:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        (out / CHECKPOINT).unlink(missing_ok=True)
    return LinearizeReport(report, transfer, adaptation, trainer.seconds)


def adapt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text: Path | str | None = None,
    how: Distillation | None = None,
) -> Curve:
    """Stage 2 of `linearize` alone, for a model whose layers are swapped already; its curve.

    Args:
        model, tokenizer, text: as there.
        how: lora_tokens must be positive; Distillation(lora_tokens=100_000) if None.

    Raises:
        ValueError: no layer is swapped, no tokens are asked for, or there is too little text.
    """
    how = Distillation(lora_tokens=100_000) if how is None else how
    if not how.lora_tokens:
        raise ValueError("adapt: how.lora_tokens is 0, there is nothing to do")
    if not list(swapped_attention(model)):
        raise ValueError("adapt: no layer of this model is swapped; call subquad.swap or subquad.linearize first")
    text = None if text is None else Path(text)
    batches = _batches(tokenizer, text, how, how.lora_tokens, how.seed + 1)
    return _adapt(model, batches, how, Trainer(None, {}, False))


def _adapt(model: PreTrainedModel, batches: Tensor, how: Distillation, trainer: Trainer) -> Curve:
    with adapters(model, how.lora_rank, how.seed) as low_rank, only_learning(model, low_rank):
        return trainer.run("stage 2", low_rank, batches, functools.partial(learn_next_token, model), how.lora_lr)


def _batches(
    tokenizer: PreTrainedTokenizerBase, text: Path | None, how: Distillation, tokens: int, seed: int
) -> Tensor:
    """(steps, batch, seq_len) token ids."""
    steps = -(-tokens // (how.seq_len * how.batch_size))
    ids = windows(tokenizer, text, how.seq_len, steps * how.batch_size, held_out=False, seed=seed)
    return ids.view(steps, how.batch_size, how.seq_len)


def _comparable(layers: Any) -> Any:
    """Layers as a checkpoint can hold them."""
    if isinstance(layers, slice):
        return ["slice", layers.start, layers.stop, layers.step]
    if callable(layers):
        return "a function"
    return layers if layers is None or isinstance(layers, int) else list(layers)
