"""What a recipe is: candidates, courses on which they are trained and tested, and how."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from subquad.mixers import HYBRIDS, MixerSpec, build_layers, known_options, specs_of

from ..model import TinyLM
from ..tasks import Task
from ..training import Schedule, Segment

SHORT_CONV = MixerSpec("base_conv", {"conv_width": 3})


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A mixer to judge, in its place among the layers of a model.

    mixer: its name; `options`: those that set it apart from other candidates of that name.
    layers: all layers. Where an option `max_length` is None, the model's length is filled in.
    d_models: the widths to try.
    baseline: it is what the others are compared with.
    learned_positions: the embedding adds learned positions.
    mlp: behind each mixer, as TinyLM's.
    """

    mixer: str
    options: dict[str, Any]
    layers: tuple[MixerSpec, ...]
    d_models: tuple[int, ...]
    baseline: bool = False
    learned_positions: bool = False
    mlp: str | None = None

    def build(self, d_model: int, vocab_size: int, length: int, bottleneck: bool = False) -> TinyLM:
        """The model, for sequences of up to `length` tokens."""
        specs = [_with_length(spec, length) for spec in self.layers]
        mixers = build_layers(specs, d_model, len(specs))
        num_positions = length if self.learned_positions else 0
        return TinyLM(mixers, d_model, vocab_size, num_positions=num_positions, mlp=self.mlp, bottleneck=bottleneck)


class Part(NamedTuple):
    """Examples of one task, and their share of the training steps; `num_examples` as in Segment."""

    task: Task
    share: float = 1.0
    num_examples: int | None = None


class Course(NamedTuple):
    """What one model is trained on, and what it is tested on.

    name: what tells it from other courses with the same tests.
    num_examples: training examples of a model, instead of the recipe's.
    """

    train: tuple[Part, ...]
    tests: tuple[Task, ...]
    name: str = ""
    num_examples: int | None = None

    @classmethod
    def of(cls, task: Task) -> "Course":
        """One task, and the tests that belong to it."""
        return cls((Part(task),), task.tests)


class Problem(NamedTuple):
    """A course with batch sizes and a schedule."""

    segments: tuple[Segment, ...]
    tests: tuple[Task, ...]
    schedule: Schedule
    name: str

    def label(self, task: Task) -> str:
        """What a table calls a test."""
        return f"{task.label}, {self.name}" if self.name else task.label


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run, but the machine.

    candidates: the mixers that run if none are named.
    place: layers around any other mixer, named on the command line; None is where it goes.
    courses: one model is trained for each.
    mlp: behind each mixer, of candidates that are not listed.
    num_examples: training examples of a model, divided among a course's parts by share; unless `steps` is set.
    max_batch, batch_tokens: a batch has at most so many rows, and tokens.
    num_evaluations: validations, curve points and checkpoints of a full training.
    warmup_share: of the steps.
    lrs, seeds: every model is trained with each; the best learning rate is reported.
    give_up_after: as in Schedule.
    contexts: lengths at which decoding is timed. throughput_seconds: to spend on timing each model.
    """

    name: str
    candidates: tuple[Candidate, ...]
    place: tuple[MixerSpec | None, ...]
    d_models: tuple[int, ...]
    courses: tuple[Course, ...]
    num_examples: int
    max_batch: int
    batch_tokens: int
    num_evaluations: int
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]
    contexts: tuple[int, ...]
    throughput_seconds: float
    steps: int | None = None
    warmup_share: float = 0.0
    weight_decay: float = 0.1
    mlp: str | None = None
    target_accuracy: float = 0.99
    give_up_after: float | None = None
    num_validation: int = 256
    num_test: int = 1000

    def problems(self) -> tuple[Problem, ...]:
        """One for each course."""
        return tuple(self._problem(course) for course in self.courses)

    def candidates_of(self, mixer: str) -> tuple[Candidate, ...]:
        """The recipe's own of that name; for a mixer that it does not list, its defaults in the recipe's place."""
        listed = tuple(candidate for candidate in self.candidates if candidate.mixer == mixer)
        if listed:
            return listed
        if mixer in HYBRIDS:
            return (Candidate(mixer=mixer, options={}, layers=specs_of(mixer), d_models=self.d_models, mlp=self.mlp),)
        options = {"max_length": None} if "max_length" in known_options(mixer) else {}
        spec = MixerSpec(mixer, options)
        layers = tuple(spec if layer is None else layer for layer in self.place)
        return (Candidate(mixer=mixer, options={}, layers=layers, d_models=self.d_models, mlp=self.mlp),)

    def with_tasks(self, tasks: Sequence[Task]) -> "Recipe":
        """Train one model on each of these instead."""
        return replace(self, courses=tuple(Course.of(task) for task in tasks))

    def with_sizes(self, sizes: Sequence[tuple[int, int]]) -> "Recipe":
        """Train and test on MQAR of these lengths and numbers of pairs instead; together if the recipe does so."""
        like = self.courses[0].tests[0]
        tasks = tuple(replace(like, seq_len=seq_len, num_pairs=num_pairs) for seq_len, num_pairs in sizes)
        return self.with_tasks(tasks) if len(self.courses) > 1 else replace(self, courses=(alike(tasks),))

    def with_widths(self, d_models: tuple[int, ...]) -> "Recipe":
        """Give every candidate these widths instead."""
        candidates = tuple(replace(candidate, d_models=d_models) for candidate in self.candidates)
        return replace(self, candidates=candidates, d_models=d_models)

    def _problem(self, course: Course) -> Problem:
        segments = tuple(
            Segment(task=task, batch_size=self._batch_size(task.seq_len), share=share, num_examples=num_examples)
            for task, share, num_examples in course.train
        )
        num_examples = self.num_examples if course.num_examples is None else course.num_examples
        return Problem(segments, course.tests, self._schedule(segments, num_examples), course.name)

    def _batch_size(self, seq_len: int) -> int:
        return max(1, min(self.max_batch, self.batch_tokens // seq_len))

    def _schedule(self, segments: tuple[Segment, ...], num_examples: int) -> Schedule:
        total = sum(segment.share for segment in segments)
        examples_per_step = sum(segment.batch_size * segment.share / total for segment in segments)
        steps = math.ceil(num_examples / examples_per_step) if self.steps is None else self.steps
        return Schedule(
            steps=steps,
            warmup_steps=round(self.warmup_share * steps),
            evaluate_every=max(1, steps // self.num_evaluations),
            num_validation=self.num_validation,
            num_test=self.num_test,
            target_accuracy=self.target_accuracy,
            give_up_after=self.give_up_after,
            weight_decay=self.weight_decay,
        )


def alike(tasks: tuple[Task, ...]) -> Course:
    """One model is trained on all of these to the same share, and tested on all."""
    return Course(tuple(Part(task) for task in tasks), tasks)


def _with_length(spec: MixerSpec, length: int) -> MixerSpec:
    given = {"max_length": length} if "max_length" in spec.options else {}
    return MixerSpec(spec.name, {**spec.options, **given})


def candidate(
    layers: tuple[MixerSpec, ...],
    judged: MixerSpec,
    d_models: tuple[int, ...],
    *,
    baseline: bool = False,
    learned_positions: bool = False,
    mlp: str | None = None,
) -> Candidate:
    """A candidate whose options are those of the layer that is judged."""
    options = {name: value for name, value in judged.options.items() if name != "max_length"}
    return Candidate(
        mixer=judged.name,
        options=options,
        layers=layers,
        d_models=d_models,
        baseline=baseline,
        learned_positions=learned_positions,
        mlp=mlp,
    )


def logspace(first: float, last: float, count: int) -> tuple[float, ...]:
    """Powers of ten with evenly spaced exponents."""
    return tuple(round(10 ** (first + (last - first) * i / (count - 1)), 6) for i in range(count))
