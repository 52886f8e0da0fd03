"""A small language model of real text with each mixer: perplexity, and how much of the gap to attention is recall."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from subquad.mixers import HYBRIDS, MIXERS, build_layers, known_options

from . import records
from .corpus import contents
from .model import TinyLM
from .tasks import Batch, Source
from .tasks._draw import repeated
from .training import Schedule, Segment, seeded_model, train

CHECKPOINTS = "checkpoints"
BASELINE = "attention"
TOKENS = ("bytes", "bpe")
MAX_BIGRAM_COUNT = 1250  # as published: what is more frequent can be learned by heart
EVALUATED_TOKENS = 1 << 13  # of one batch


@dataclass(frozen=True, kw_only=True)
class LanguageSettings:
    """Everything that decides a run, but the machine and the files of the text.

    mixers: keys of MIXERS or HYBRIDS; attention is what the others are compared with.
    tokens: "bytes", or "bpe" of `vocab_size`, learned from the training text.
    seq_len: context. batch_size, steps: of training.
    lrs, seeds: every model is trained with each.
    held_out_windows: windows of held-out text on which perplexity is measured.
    max_bigram_count: a bigram that is more frequent in the training text is no hit.
    """

    mixers: tuple[str, ...] = ("attention", "based", "linear_attention", "sliding_window", "gated_delta_net", "mamba2")
    tokens: str = "bpe"
    vocab_size: int = 4096
    seq_len: int = 256
    d_model: int = 128
    num_layers: int = 2
    batch_size: int = 16
    steps: int = 2000
    lrs: tuple[float, ...] = (1e-3, 3e-3)
    seeds: tuple[int, ...] = (0,)
    held_out_windows: int = 256
    max_bigram_count: int = MAX_BIGRAM_COUNT

    def __post_init__(self):
        if self.tokens not in TOKENS:
            raise ValueError(f"text: tokens must be one of {', '.join(TOKENS)}, got {self.tokens!r}")
        if unknown := [mixer for mixer in self.mixers if mixer not in MIXERS and mixer not in HYBRIDS]:
            known = ", ".join((*MIXERS, *HYBRIDS))
            raise ValueError(f"text: unknown mixer {', '.join(map(repr, unknown))}; expected some of {known}")
        for name in ("seq_len", "d_model", "num_layers", "batch_size", "steps", "held_out_windows"):
            if getattr(self, name) < 1:
                raise ValueError(f"text: {name} must be at least 1, got {getattr(self, name)}")


class Text(Source):
    """Windows of a long sequence of tokens; the next token is due everywhere."""

    def __init__(self, tokens: Tensor, vocab_size: int, seq_len: int):
        if len(tokens) < seq_len + 1:
            raise ValueError(f"text: a window of {seq_len} needs {seq_len + 1} tokens, the text has {len(tokens)}")
        self.tokens, self.vocab_size, self.seq_len = tokens, vocab_size, seq_len

    @property
    def label(self) -> str:
        return "text"

    @cached_property
    def chance(self) -> float:
        """Of the most frequent token."""
        return self.tokens.bincount().max().item() / len(self.tokens)

    def sample(self, n: int, generator: Generator) -> Batch:
        starts = torch.randint(len(self.tokens) - self.seq_len, (n, 1), generator=generator)
        rows = self.tokens[starts + torch.arange(self.seq_len + 1)]
        return Batch.of(rows[:, :-1], rows[:, 1:])

    def windows(self, num: int) -> Tensor:
        """(num, seq_len + 1) windows that do not overlap, from the beginning, or as many as there are."""
        num = min(num, len(self.tokens) // (self.seq_len + 1))
        return self.tokens[: num * (self.seq_len + 1)].view(num, self.seq_len + 1)


class Corpus(NamedTuple):
    """A text to learn from, and one that is held out."""

    train: Text
    held_out: Text


def read_corpus(text: Path | None, settings: LanguageSettings) -> Corpus:
    """Raises ValueError or FileNotFoundError as `corpus.contents` does, or if there is too little text."""
    parts = ["\n".join(contents(text, held_out=held_out)) for held_out in (False, True)]
    if not parts[1]:
        raise ValueError(f"text: none of the files of {text} is held out; give more files, or a single one")
    if settings.tokens == "bytes":
        encoded = [torch.from_numpy(np.frombuffer(part.encode(), np.uint8).astype(np.int64)) for part in parts]
        vocab_size = 256
    else:
        encoded, vocab_size = _byte_pairs(parts, settings.vocab_size)
    return Corpus(*(Text(tokens, vocab_size, settings.seq_len) for tokens in encoded))


def _byte_pairs(parts: list[str], vocab_size: int) -> tuple[list[Tensor], int]:
    """Byte-level BPE, learned from the first part."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(parts[0].splitlines(keepends=True), trainer)
    return [torch.tensor(tokenizer.encode(part).ids) for part in parts], tokenizer.get_vocab_size()


def recall_hits(windows: Tensor, train: Tensor, vocab_size: int, max_count: int) -> Tensor:
    """(n, t + 1) windows -> (n, t): whether the next token is an associative-recall hit.

    Token x_t is a hit if the bigram (x_{t-1}, x_t) stood earlier in the window, and stands at most `max_count` times in
    the training text, so that it cannot be known by heart (Arora et al. 2023, arXiv 2312.04927, sec. 3).
    """
    bigrams = windows[:, :-1] * vocab_size + windows[:, 1:]
    known, counts = (train[:-1] * vocab_size + train[1:]).unique(return_counts=True)
    place = torch.searchsorted(known, bigrams).clamp(max=len(known) - 1)
    count = counts[place].where(known[place] == bigrams, 0)
    return repeated(bigrams) & (count <= max_count)


@torch.no_grad()
def token_losses(model: TinyLM, windows: Tensor) -> Tensor:
    """(n, t + 1) -> (n, t): nats of each next token, float32."""
    device = model.embedding.weight.device
    model.eval()
    losses = []
    for rows in windows.split(max(1, EVALUATED_TOKENS // windows.shape[1])):
        logits = model.logits(model(rows[:, :-1].to(device)))
        losses.append(F.cross_entropy(logits.transpose(1, 2).float(), rows[:, 1:].to(device), reduction="none").cpu())
    model.train()
    return torch.cat(losses)


class TextJob(NamedTuple):
    """One model to train."""

    mixer: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.mixer}-lr{self.lr:g}-seed{self.seed}"


def run_language(
    settings: LanguageSettings, folder: Path, *, text: Path | None = None, resume: bool = False
) -> Iterator[dict]:
    """Train and measure each model that has no record yet; yields each record when it is written.

    Args:
        folder: for the records, and checkpoints while it runs.
        text: a file or a folder; the standard library's source if None.
        resume: go on with what the folder holds.

    Raises:
        ValueError: too little text, a mixer that cannot be built, or a folder that holds records unasked or of other
            settings; nothing is written then.
    """
    done = [record for record in records.read(folder) if record["kind"] == "text"]
    if done and not resume:
        raise ValueError(
            f"text: {folder} already holds {len(done)} records; go on by --resume, or choose another --out"
        )
    asked = _compared(settings, text)
    if any(record["settings"] != asked for record in done):
        raise ValueError(f"text: {folder} was begun with other settings; repeat them, or choose another --out")
    corpus = read_corpus(text, settings)
    for mixer in settings.mixers:
        with torch.device("meta"):
            _build(settings, mixer, corpus.train.vocab_size)
    return _run(settings, corpus, folder, asked, {record["job"] for record in done})


def _run(settings: LanguageSettings, corpus: Corpus, folder: Path, asked: dict, done: set[str]) -> Iterator[dict]:
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    windows = corpus.held_out.windows(settings.held_out_windows)
    hits = recall_hits(windows, corpus.train.tokens, corpus.train.vocab_size, settings.max_bigram_count)
    jobs = [TextJob(mixer, lr, seed) for mixer in settings.mixers for lr in settings.lrs for seed in settings.seeds]
    for job in (job for job in jobs if job.name not in done):
        checkpoint = folder / CHECKPOINTS / f"{job.name}.pt"
        record = _train(settings, corpus, job, checkpoint, windows, hits) | {"settings": asked}
        records.append(folder, record)
        checkpoint.unlink(missing_ok=True)
        yield record


def _train(
    settings: LanguageSettings, corpus: Corpus, job: TextJob, checkpoint: Path, windows: Tensor, hits: Tensor
) -> dict:
    model = seeded_model(lambda: _build(settings, job.mixer, corpus.train.vocab_size), job.seed)
    segment = Segment(task=corpus.train, batch_size=settings.batch_size)
    schedule = Schedule(
        steps=settings.steps,
        warmup_steps=settings.steps // 10,
        evaluate_every=max(1, settings.steps // 10),
        num_validation=settings.batch_size,
        num_test=settings.batch_size,
    )
    run = train(model, (segment,), (corpus.held_out,), schedule, lr=job.lr, seed=job.seed, checkpoint=checkpoint)
    losses = token_losses(model, windows)
    nats = {"all": losses.mean(), "hits": losses[hits].mean(), "rest": losses[~hits].mean()}
    return {
        "kind": "text",
        "job": job.name,
        "mixer": job.mixer,
        "baseline": job.mixer == BASELINE,
        "lr": job.lr,
        "seed": job.seed,
        "nats": {name: value.item() for name, value in nats.items()},
        "hit_share": hits.float().mean().item(),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "state_bytes": model.state_size(settings.seq_len),
        "tokens": {"train": len(corpus.train.tokens), "held_out": windows[:, 1:].numel()},
        "vocab_size": corpus.train.vocab_size,
        "steps": run.steps,
        "loss_curve": [[point.step, point.loss] for point in run.curve],
        "diverged": run.diverged,
        "train_seconds": run.seconds,
        "environment": records.environment(model.embedding.weight.device, job.seed),
    }


def _build(settings: LanguageSettings, mixer: str, vocab_size: int) -> TinyLM:
    options = {}
    if mixer in MIXERS and "max_length" in known_options(mixer):
        options["max_length"] = settings.seq_len
    mixers = build_layers(mixer, settings.d_model, settings.num_layers, **options)
    return TinyLM(mixers, settings.d_model, vocab_size, mlp="swiglu")


def _compared(settings: LanguageSettings, text: Path | None) -> dict:
    """What two runs must share to stand in one table; which mixers, rates and seeds they train may differ."""
    own = asdict(replace(settings, mixers=(), lrs=(), seeds=()))
    return {name: value for name, value in own.items() if value != ()} | {"text": text.name if text else None}


def explained_share(model: dict, baseline: dict, hit_share: float) -> float | None:
    """Of the gap in nats to the baseline, the part that hits make up, at most 1; None where there is no gap.

    share = (loss_hits - baseline_hits) * hit_share / (loss_all - baseline_all)

    Source: Arora et al. 2023 (arXiv 2312.04927), table 1.
    """
    gap = model["all"] - baseline["all"]
    return min(1.0, max(0.0, (model["hits"] - baseline["hits"]) * hit_share / gap)) if gap > 0 else None


def language_table(found: Sequence[dict]) -> str:
    """Records as markdown, each mixer at its best learning rate, the baseline first; means over seeds."""
    rows = sorted(_best(found), key=lambda row: (not row["baseline"], row["nats"]["all"]))
    baseline = next((row for row in rows if row["baseline"]), None)
    lines = [
        "| mixer | perplexity | at recall hits | at the rest | gap explained by recall, % | state KiB | lr |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        share = explained_share(row["nats"], baseline["nats"], row["hit_share"]) if baseline else None
        cells = [row["mixer"], *(f"{math.exp(row['nats'][part]):.2f}" for part in ("all", "hits", "rest"))]
        cells += ["-" if share is None else f"{100 * share:.0f}", f"{row['state_bytes'] / 1024:,.1f}", f"{row['lr']:g}"]
        lines.append("| " + " | ".join(cells) + " |")
    hits = f"{100 * rows[0]['hit_share']:.1f} % of {rows[0]['tokens']['held_out']:,} held-out tokens are recall hits."
    return "\n".join([*lines, "", hits])


def _best(found: Sequence[dict]) -> list[dict]:
    """One row for each mixer: that of the learning rate with the least loss, nats averaged over seeds."""
    rows = {}
    for key in dict.fromkeys((record["mixer"], record["lr"]) for record in found):
        same = [record for record in found if (record["mixer"], record["lr"]) == key]
        nats = {part: sum(record["nats"][part] for record in same) / len(same) for part in ("all", "hits", "rest")}
        row = same[0] | {"nats": nats}
        if key[0] not in rows or nats["all"] < rows[key[0]]["nats"]["all"]:
            rows[key[0]] = row
    return list(rows.values())
