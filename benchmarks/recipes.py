"""Named runs of the recall benchmark: functions that return a frozen Recipe."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from subquad.mixers import HYBRIDS, MixerSpec, build_layers, known_options, specs_of

from .model import TinyLM
from .tasks import MQAR, Task
from .training import Schedule, Segment

SHORT_CONV = MixerSpec("base_conv", {"conv_width": 3})


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A mixer to judge, in its place among the layers of a model.

    mixer: its name; `options`: those that set it apart from other candidates of that name.
    layers: all layers. Where an option `max_length` is None, the model's length is filled in.
    d_models: the widths to try.
    baseline: it is what the others are compared with.
    learned_positions: the embedding adds learned positions.
    """

    mixer: str
    options: dict[str, Any]
    layers: tuple[MixerSpec, ...]
    d_models: tuple[int, ...]
    baseline: bool = False
    learned_positions: bool = False

    def build(self, d_model: int, vocab_size: int, length: int, bottleneck: bool = False) -> TinyLM:
        """The model, for sequences of up to `length` tokens."""
        specs = [_with_length(spec, length) for spec in self.layers]
        mixers = build_layers(specs, d_model, len(specs))
        num_positions = length if self.learned_positions else 0
        return TinyLM(mixers, d_model, vocab_size, num_positions=num_positions, bottleneck=bottleneck)


class Part(NamedTuple):
    """Examples of one task, and their share of the training steps; `num_examples` as in Segment."""

    task: Task
    share: float = 1.0
    num_examples: int | None = None


class Course(NamedTuple):
    """What one model is trained on, and what it is tested on."""

    train: tuple[Part, ...]
    tests: tuple[Task, ...]

    @classmethod
    def of(cls, task: Task) -> "Course":
        """One task, and the tests that belong to it."""
        return cls((Part(task),), task.tests)


class Problem(NamedTuple):
    """A course with batch sizes and a schedule."""

    segments: tuple[Segment, ...]
    tests: tuple[Task, ...]
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run, but the machine.

    candidates: the mixers that run if none are named.
    place: layers around any other mixer, named on the command line; None is where it goes.
    courses: one model is trained for each.
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
            return (Candidate(mixer=mixer, options={}, layers=specs_of(mixer), d_models=self.d_models),)
        options = {"max_length": None} if "max_length" in known_options(mixer) else {}
        spec = MixerSpec(mixer, options)
        layers = tuple(spec if layer is None else layer for layer in self.place)
        return (Candidate(mixer=mixer, options={}, layers=layers, d_models=self.d_models),)

    def with_tasks(self, tasks: Sequence[Task]) -> "Recipe":
        """Train one model on each of these instead."""
        return replace(self, courses=tuple(Course.of(task) for task in tasks))

    def with_sizes(self, sizes: Sequence[tuple[int, int]]) -> "Recipe":
        """Train and test on MQAR of these lengths and numbers of pairs instead; together if the recipe does so."""
        like = self.courses[0].tests[0]
        tasks = tuple(replace(like, seq_len=seq_len, num_pairs=num_pairs) for seq_len, num_pairs in sizes)
        return self.with_tasks(tasks) if len(self.courses) > 1 else replace(self, courses=(_alike(tasks),))

    def with_widths(self, d_models: tuple[int, ...]) -> "Recipe":
        """Give every candidate these widths instead."""
        candidates = tuple(replace(candidate, d_models=d_models) for candidate in self.candidates)
        return replace(self, candidates=candidates, d_models=d_models)

    def _problem(self, course: Course) -> Problem:
        segments = tuple(
            Segment(task=task, batch_size=self._batch_size(task.seq_len), share=share, num_examples=num_examples)
            for task, share, num_examples in course.train
        )
        return Problem(segments, course.tests, self._schedule(segments))

    def _batch_size(self, seq_len: int) -> int:
        return max(1, min(self.max_batch, self.batch_tokens // seq_len))

    def _schedule(self, segments: tuple[Segment, ...]) -> Schedule:
        total = sum(segment.share for segment in segments)
        examples_per_step = sum(segment.batch_size * segment.share / total for segment in segments)
        steps = math.ceil(self.num_examples / examples_per_step) if self.steps is None else self.steps
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


def quick() -> Recipe:
    """Minutes on two CPU cores. Based's layout (arXiv 2402.18668): layer 0 a short convolution, layer 1 the mixer."""
    place = (SHORT_CONV, None)

    def candidate(mixer: str, baseline: bool = False, **options: Any) -> Candidate:
        spec = MixerSpec(mixer, options)
        return _candidate((SHORT_CONV, spec), spec, (64,), baseline=baseline)

    return Recipe(
        name="quick",
        candidates=(
            candidate("attention", baseline=True, num_heads=1),
            candidate("sliding_window", num_heads=1, window=16),
            candidate("sliding_window", num_heads=1, window=32),
            candidate("based", num_heads=1, feature_dim=4),
            candidate("based", num_heads=1, feature_dim=8),
            candidate("linear_attention", num_heads=1),
            candidate("base_conv", conv_width=None, max_length=None),
            candidate("hyena", max_length=None),
        ),
        place=place,
        d_models=(64,),
        courses=(_alike(_mqar((64, 4), (64, 8), (128, 16), vocab_size=256)),),
        num_examples=64 * 300,
        max_batch=64,
        batch_tokens=1 << 13,
        num_evaluations=15,
        warmup_share=0.1,
        target_accuracy=0.997,
        lrs=(5e-3, 1e-2),
        seeds=(0,),
        contexts=(128, 1024, 4096),
        throughput_seconds=1.5,
        num_validation=128,
        num_test=500,
    )


def zoology_figure2() -> Recipe:
    """Figure 2 of Arora et al. 2023 (arXiv 2312.04927), as in their code: one model for each size, width and rate.

    Different here: examples are fresh instead of 64 passes over 100,000, so there is no dropout (published 0.1); the
    blocks have no second norm.
    """
    widths = (64, 128, 256, 512)
    long_conv = MixerSpec("base_conv", {"conv_width": None, "max_length": None})

    def twice(mixer: str, **options: Any) -> tuple[tuple[MixerSpec, ...], MixerSpec]:
        spec = MixerSpec(mixer, options)
        return (spec, spec), spec

    based = MixerSpec("based", {"num_heads": 1, "feature_dim": 8})
    tasks = _mqar((64, 4), (128, 8), (256, 16), (512, 64), vocab_size=8192, random_non_queries=False)
    return Recipe(
        name="zoology-figure2",
        candidates=(
            _candidate(
                *twice("attention", num_heads=1, rotary_base=None), widths, baseline=True, learned_positions=True
            ),
            _candidate(*twice("hyena", max_length=None), widths),
            _candidate((SHORT_CONV, long_conv), long_conv, widths),
            _candidate((SHORT_CONV, based), based, widths),
        ),
        place=(None, None),
        d_models=widths,
        courses=tuple(Course.of(task) for task in tasks),
        num_examples=64 * 100_000,
        max_batch=512,
        batch_tokens=1 << 16,
        num_evaluations=64,
        lrs=_logspace(-4, -2, 4),
        seeds=(123,),
        contexts=(512, 2048, 8192, 32768),
        throughput_seconds=10.0,
        num_test=3000,
    )


def based_frontier() -> Recipe:
    """Figures 2 and 3 of Arora et al. 2024 (arXiv 2402.18668): one model trained on five sizes, tested on seven.

    Two of the test sizes are longer than any in training, so the mean mixes capacity with going on past the trained
    length. Different here: examples are fresh instead of 32 passes over 180,000; a window of w sees w tokens, not
    w + 1.
    """
    long_conv_widths = (64, 128, 256)

    def second(mixer: str, widths: tuple[int, ...], baseline: bool = False, **options: Any) -> Candidate:
        spec = MixerSpec(mixer, {"num_heads": 1, **options})
        return _candidate((SHORT_CONV, spec), spec, widths, baseline=baseline)

    hyena = MixerSpec("hyena", {"max_length": None})
    trained = _mqar((64, 4), (128, 8), (256, 16), (256, 32), (256, 64), vocab_size=8192)
    train = tuple(Part(task, share) for task, share in zip(trained, (5.0, 1.0, 1.0, 1.0, 1.0), strict=True))
    tests = _mqar((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256), vocab_size=8192)
    return Recipe(
        name="based-frontier",
        candidates=(
            second("attention", (64, 128), baseline=True, rotary_base=None),
            *(second("sliding_window", (128,), window=2**n, rotary_base=None) for n in range(3, 11)),
            *(second("based", (48, 64, 128), feature_dim=f) for f in (8, 16, 24)),
            _candidate((hyena, hyena), hyena, long_conv_widths),
        ),
        place=(SHORT_CONV, None),
        d_models=(64, 128),
        courses=(Course(train, tests),),
        num_examples=32 * 180_000,
        max_batch=256,
        batch_tokens=1 << 16,
        num_evaluations=32,
        target_accuracy=1.0,
        lrs=_logspace(-3, -1.5, 4),
        seeds=(123,),
        contexts=(1024, 4096, 16384),
        throughput_seconds=10.0,
    )


def mqar_2026() -> Recipe:
    """Every mixer twice in a row, as many parameters each as attention has, with and without a short convolution.

    Published comparisons give some mixers a short convolution and others none, though it alone lets one layer recall,
    and few learning rates, though state spaces learn in a narrow window of them (Okpekpe & Orvieto 2025, arXiv
    2508.19029). So both are varied here for all alike. Options are the mixers' own, but for widths that are narrowed to
    the common budget of parameters, and for a single head where that makes the memory largest (retention, whose decays
    are fixed, keeps its heads). BaseConv is left out, and so are HedgehogWindow and SinkWindow, which take over from
    attention that is trained already. Lengths and steps are what a CPU does in hours: gated mixers begin to learn after
    some 1,300 steps.
    """

    def twice(mixer: str, baseline: bool = False, **options: Any) -> Candidate:
        spec = MixerSpec(mixer, options)
        return _candidate((spec, spec), spec, (64,), baseline=baseline)

    def both(mixer: str, baseline: bool = False, **options: Any) -> tuple[Candidate, Candidate]:
        return tuple(twice(mixer, baseline, conv_width=width, **options) for width in (None, 4))

    tasks = _mqar((64, 4), (64, 8), (128, 16), (256, 32), vocab_size=256)
    return Recipe(
        name="mqar-2026",
        candidates=(
            *both("attention", baseline=True, num_heads=1),
            *both("sliding_window", num_heads=1, window=32),
            *both("linear_attention", num_heads=1),
            *both("based"),
            *both("rebased"),
            *both("retention"),
            *both("gla", num_heads=1),
            *both("hgrn2", num_heads=1),
            *both("mlstm", num_heads=1),
            *both("mamba2", num_heads=1, expand=1, d_state=64),
            *both("delta_net", num_heads=1),
            *both("gated_delta_net", num_heads=1, expand_v=1),
            *both("kimi_delta"),
            *(twice("rwkv7", num_heads=1, rank=8, token_shift=shift) for shift in (False, True)),
            *both("mamba", expand=1, d_state=32),
            *both("rg_lru"),
            *both("hyena", max_length=None, hidden_dim=16),
            twice("s4d"),
            twice("h3", d_state=16, shift=1),
            twice("h3", d_state=16, shift=4),
        ),
        place=(None, None),
        d_models=(64,),
        courses=(Course(tuple(map(Part, tasks, (4.0, 2.0, 1.0, 1.0))), tasks),),
        num_examples=30 * 2000,
        max_batch=32,
        batch_tokens=1 << 12,
        num_evaluations=20,
        warmup_share=0.1,
        target_accuracy=0.99,
        lrs=_logspace(-3, -1.5, 4),
        seeds=(0,),
        contexts=(1024, 8192, 65536),
        throughput_seconds=1.5,
        num_validation=128,
        num_test=500,
    )


def _mqar(*sizes: tuple[int, int], vocab_size: int, random_non_queries: bool = True) -> tuple[MQAR, ...]:
    """The task at lengths and numbers of pairs."""
    return tuple(
        MQAR(seq_len=seq_len, num_pairs=pairs, vocab_size=vocab_size, random_non_queries=random_non_queries)
        for seq_len, pairs in sizes
    )


def _alike(tasks: tuple[Task, ...]) -> Course:
    """One model is trained on all of these to the same share, and tested on all."""
    return Course(tuple(Part(task) for task in tasks), tasks)


def _with_length(spec: MixerSpec, length: int) -> MixerSpec:
    given = {"max_length": length} if "max_length" in spec.options else {}
    return MixerSpec(spec.name, {**spec.options, **given})


def _candidate(
    layers: tuple[MixerSpec, ...],
    judged: MixerSpec,
    d_models: tuple[int, ...],
    *,
    baseline: bool = False,
    learned_positions: bool = False,
) -> Candidate:
    options = {name: value for name, value in judged.options.items() if name != "max_length"}
    return Candidate(
        mixer=judged.name,
        options=options,
        layers=layers,
        d_models=d_models,
        baseline=baseline,
        learned_positions=learned_positions,
    )


def _logspace(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(round(10 ** (first + (last - first) * i / (count - 1)), 6) for i in range(count))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "quick": quick,
    "zoology-figure2": zoology_figure2,
    "based-frontier": based_frontier,
    "mqar-2026": mqar_2026,
}
