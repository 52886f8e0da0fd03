"""Training and testing of a model on tasks. Nothing here knows a mixer or a task by name."""

import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ._cross_entropy import linear_argmax, linear_cross_entropy
from .model import TinyLM
from .tasks import Batch, Source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HOPE = 0.1  # of the way from chance to 1: a training that has come so far is not given up
TEST_TOKENS = 1 << 14  # of one batch of a test: small enough for any machine, large enough to be efficient
TRAINING_STREAM, VALIDATION_STREAM, TEST_STREAM, DATASET_STREAM = range(4)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Part of the training data; each step takes one batch from one segment, drawn by share.

    num_examples: so many are drawn once and each batch is drawn from them, with replacement; if None, every example
        is fresh.
    """

    task: Source
    batch_size: int
    share: float = 1.0
    num_examples: int | None = None

    def __post_init__(self):
        if self.num_examples is not None and self.num_examples < 1:
            raise ValueError(f"Segment: num_examples must be at least 1, or None, got {self.num_examples}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a model is trained.

    steps: at most so many updates; the learning rate rises for `warmup_steps` and falls as a cosine to 0 at `steps`.
    target_accuracy: stop when the mean accuracy over the test tasks, on validation examples, reaches it.
    give_up_after: stop after this share of the steps if validation has not come above chance by a tenth of what lies
        between chance and 1; None never gives up. Some mixers begin to learn late, so this may change what comes out.
    evaluate_every: updates between two validations; each writes a point of the curve and a checkpoint.
    num_validation, num_test: examples of each test task.
    """

    steps: int
    warmup_steps: int
    evaluate_every: int
    num_validation: int
    num_test: int
    target_accuracy: float = 1.0
    give_up_after: float | None = None
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self):
        if self.give_up_after is not None and not 0 < self.give_up_after < 1:
            raise ValueError(f"Schedule: give_up_after must be in (0, 1), or None, got {self.give_up_after}")
        for name in ("steps", "evaluate_every", "num_validation", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"Schedule: {name} must be at least 1, got {getattr(self, name)}")

    def lr_factor(self, step: int) -> float:
        """Share of the peak learning rate that update `step` (from 0) uses."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Point:
    """Where training stood at one validation; `loss` is the mean since the point before, None if it overflowed."""

    step: int
    loss: float | None
    accuracy: float


@dataclass(frozen=True)
class Run:
    """What came of a training."""

    steps: int
    accuracies: list[float]  # one for each test task
    curve: list[Point]
    diverged: bool
    given_up: bool
    seconds: float

    @property
    def accuracy(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)


def train(
    model: TinyLM,
    segments: Sequence[Segment],
    tests: Sequence[Source],
    schedule: Schedule,
    *,
    lr: float,
    seed: int,
    dtype: torch.dtype = torch.float32,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float | None], None] = lambda step, accuracy: None,
) -> Run:
    """Train `model` in place, where it is, and test it.

    The seed decides all data; with the same number of threads on a CPU the same seed gives the same bits. If
    `checkpoint` exists, training goes on from it and ends in the same bits as if it had never stopped.

    Args:
        segments: what is trained on.
        tests: what is validated and tested on.
        lr: peak learning rate.
        dtype: float32, or bfloat16 for autocast; parameters stay float32.
        checkpoint: file to go on from and to write at every validation.
        on_step: told the number of updates done and the last validation's accuracy.
    """
    device = next(model.parameters()).device
    data = stream(seed, TRAINING_STREAM)
    sources = _sources(segments, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=schedule.weight_decay, fused=True)
    progress = _Progress()
    if checkpoint is not None and checkpoint.exists():
        progress = _load(checkpoint, model, optimizer, data, device)
    started = time.perf_counter() - progress.seconds
    losses = []
    model.train()
    while progress.step < schedule.steps and not progress.finished:
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule.lr_factor(progress.step)
        losses.append(update(model, optimizer, _draw(sources, data), schedule.clip_norm, dtype))
        progress.step += 1
        if progress.step % schedule.evaluate_every == 0 or progress.step == schedule.steps:
            loss = torch.stack(losses).mean().item()
            losses.clear()
            accuracies = evaluate(model, tests, schedule.num_validation, stream(seed, VALIDATION_STREAM), dtype=dtype)
            progress.add(loss, sum(accuracies) / len(accuracies), schedule.target_accuracy)
            progress.consider_giving_up(schedule, sum(task.chance for task in tests) / len(tests))
            progress.seconds = time.perf_counter() - started
            if checkpoint is not None:
                _save(checkpoint, model, optimizer, data, progress)
        on_step(progress.step, progress.curve[-1].accuracy if progress.curve else None)
    accuracies = evaluate(model, tests, schedule.num_test, stream(seed, TEST_STREAM), dtype=dtype)
    seconds = time.perf_counter() - started
    return Run(progress.step, accuracies, progress.curve, progress.diverged, progress.given_up, seconds)


def update(
    model: TinyLM, optimizer: torch.optim.Optimizer, batch: Batch, clip_norm: float, dtype: torch.dtype
) -> Tensor:
    """One optimiser step on the loss where an answer is due; returns that loss."""
    device = model.embedding.weight.device
    with _autocast(device, dtype):
        hidden = model(batch.inputs.to(device), batch.positions.to(device))
        loss = linear_cross_entropy(hidden, model.embedding.weight, batch.answers.to(device))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(
    model: TinyLM, tasks: Sequence[Source], num_examples: int, generator: torch.Generator, *, dtype: torch.dtype
) -> list[float]:
    """Share of answers that are right, for each task."""
    model.eval()
    accuracies = [_accuracy(model, task, num_examples, generator, dtype) for task in tasks]
    model.train()
    return accuracies


def stream(seed: int, purpose: int) -> torch.Generator:
    """A random stream of its own for each purpose of a seed; the global one is left alone."""
    return torch.Generator().manual_seed((seed << 8) + purpose)


def seeded_model(build: Callable[[], TinyLM], seed: int) -> TinyLM:
    """Build a model whose initial parameters `seed` decides; PyTorch's global stream stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def _accuracy(model: TinyLM, task: Source, num_examples: int, generator: torch.Generator, dtype: torch.dtype) -> float:
    device = model.embedding.weight.device
    batch_size = max(1, TEST_TOKENS // task.seq_len)
    right = total = 0
    for start in range(0, num_examples, batch_size):
        batch = task.sample(min(batch_size, num_examples - start), generator)
        with _autocast(device, dtype):
            hidden = model(batch.inputs.to(device), batch.positions.to(device))
            guesses = linear_argmax(hidden, model.embedding.weight)
        right += (guesses == batch.answers.to(device)).sum().item()
        total += len(batch.positions)
    return right / total


Draw = Callable[[torch.Generator], Batch]


def _sources(segments: Sequence[Segment], seed: int) -> list[tuple[float, Draw]]:
    """Share of each segment, and how to draw a batch of it."""
    once = stream(seed, DATASET_STREAM)
    return [
        (segment.share, functools.partial(_fresh, segment) if segment.num_examples is None else _Dataset(segment, once))
        for segment in segments
    ]


def _draw(sources: Sequence[tuple[float, Draw]], generator: torch.Generator) -> Batch:
    shares = torch.tensor([share for share, _ in sources])
    _, source = sources[int(torch.multinomial(shares, 1, generator=generator))]
    return source(generator)


def _fresh(segment: Segment, generator: torch.Generator) -> Batch:
    batch = segment.task.sample(segment.batch_size, generator)
    return batch.with_next_tokens() if segment.task.every_token else batch


class _Dataset:
    """Batches from a fixed number of examples."""

    def __init__(self, segment: Segment, once: torch.Generator):
        self.batch_size = segment.batch_size
        whole = replace(segment, batch_size=segment.num_examples)
        self.inputs, self.targets, _ = _fresh(whole, once)

    def __call__(self, generator: torch.Generator) -> Batch:
        rows = torch.randint(len(self.inputs), (self.batch_size,), generator=generator)
        return Batch.of(self.inputs[rows], self.targets[rows])


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32)


@dataclass
class _Progress:
    """Where a training stands, apart from parameters and random streams."""

    step: int = 0
    curve: list[Point] = None
    finished: bool = False
    diverged: bool = False
    given_up: bool = False
    seconds: float = 0.0

    def __post_init__(self):
        self.curve = [Point(**point) if isinstance(point, dict) else point for point in self.curve or []]

    def add(self, loss: float, accuracy: float, target: float):
        self.diverged = not math.isfinite(loss)
        self.curve.append(Point(self.step, None if self.diverged else loss, accuracy))
        self.finished = self.diverged or accuracy >= target

    def consider_giving_up(self, schedule: Schedule, chance: float):
        if schedule.give_up_after is None or self.step < schedule.give_up_after * schedule.steps:
            return
        best = max(point.accuracy for point in self.curve)
        self.given_up = not self.finished and best < chance + HOPE * (1 - chance)
        self.finished = self.finished or self.given_up


def _save(path: Path, model: TinyLM, optimizer: torch.optim.Optimizer, data: torch.Generator, progress: _Progress):
    """Write beside the old checkpoint, then put it in its place: a kill leaves one or the other, whole."""
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "data": data.get_state()}
        torch.save(content | {"progress": asdict(progress)}, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _load(
    path: Path, model: TinyLM, optimizer: torch.optim.Optimizer, data: torch.Generator, device: torch.device
) -> _Progress:
    content = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    data.set_state(content["data"].cpu())
    return _Progress(**content["progress"])
