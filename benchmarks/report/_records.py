"""From the lines of records.jsonl to one row for each mixer, width and set of options."""

import json
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from ..records import FILE_NAME, read

# Of a test, and what they are called.
SIZES = {
    "seq_len": "length of the sequence",
    "num_pairs": "number of pairs",
    "num_examples": "number of training examples",
}
WORKING_SHARE = 0.95  # a learning rate works if its accuracy is at least this share of the best one's


class Test(NamedTuple):
    """One task on which models are tested."""

    seq_len: int
    label: str
    num_pairs: int | None  # None where the task has no pairs
    num_examples: int | None  # of training; None where each is fresh


@dataclass(frozen=True)
class Run:
    """One training, as its record holds it; the names are the record's keys."""

    job: str
    recipe: str
    mixer: str
    baseline: bool
    options: dict
    model: dict  # d_model, num_layers, num_parameters
    task: dict
    lr: float
    seed: int
    steps: int
    accuracy: float
    segments: list[dict]  # label, seq_len, accuracy, and the task's fields
    loss_curve: list[list[float | None]]  # step, loss; None where it overflowed
    accuracy_curve: list[list[float]]  # step, accuracy on validation examples
    diverged: bool
    state_bytes: int  # of one sequence
    train_seconds: float
    throughput: dict | None  # train_tokens_per_second, prefill_tokens_per_second, decode; None if not measured
    levers: dict
    environment: dict


@dataclass(frozen=True)
class Choice:
    """The learning rate at which one model does best.

    Args:
        runs: the runs at that rate, one for each seed.
        accuracies: mean accuracy over seeds at each rate tried.
    """

    runs: tuple[Run, ...]
    accuracies: dict[float, float]

    @property
    def lr(self) -> float:
        return self.runs[0].lr

    @property
    def spread(self) -> float:
        """Distance between the best and the worst seed."""
        accuracies = [run.accuracy for run in self.runs]
        return max(accuracies) - min(accuracies)

    @property
    def segments(self) -> dict[Test, float]:
        """Mean accuracy over seeds."""
        return {test: mean(tests_of(run)[test] for run in self.runs) for test in tests_of(self.runs[0])}


@dataclass(frozen=True)
class Row:
    """One mixer at one width with one set of options and number of layers.

    Args:
        variant: the options, `layers` among them, that tell it from other rows of the same mixer.
        has_width: whether its width does so too.
        choices: one for each model: one model for all tests, or one for each, the longest test last.
    """

    variant: dict
    has_width: bool
    choices: tuple[Choice, ...]

    @property
    def mixer(self) -> str:
        return self.longest.mixer

    @property
    def label(self) -> str:
        """The mixer with its variant."""
        options = ", ".join(f"{name}={value}" for name, value in self.variant.items())
        return f"{self.mixer} ({options})" if options else self.mixer

    @property
    def name(self) -> str:
        """The label, with the width where several were run."""
        return f"{self.label}, width {self.d_model}" if self.has_width else self.label

    @property
    def longest(self) -> Run:
        """A run of the model of the longest tests: what is measured once for a model is read from it."""
        return self.choices[-1].runs[0]

    @property
    def baseline(self) -> bool:
        return self.longest.baseline

    @property
    def d_model(self) -> int:
        return self.longest.model["d_model"]

    @property
    def num_parameters(self) -> int:
        return self.longest.model["num_parameters"]

    @property
    def state_bytes(self) -> int:
        return self.longest.state_bytes

    @property
    def segments(self) -> dict[Test, float]:
        """Mean accuracy over seeds, for every test."""
        return {test: accuracy for choice in self.choices for test, accuracy in choice.segments.items()}

    def by_size(self, name: str) -> dict[int, float]:
        """Size -> accuracy in %, ascending, the mean over tests of one size; tests without it are left out."""
        found = defaultdict(list)
        for test, accuracy in self.segments.items():
            if getattr(test, name) is not None:
                found[getattr(test, name)].append(100 * accuracy)
        return {size: mean(found[size]) for size in sorted(found)}

    @property
    def accuracy(self) -> float:
        return mean(self.segments.values())

    @property
    def spread(self) -> float:
        """Distance between the best and the worst seed, on average over the models."""
        return mean(choice.spread for choice in self.choices)

    @property
    def accuracies(self) -> dict[float, float]:
        """Mean accuracy at each learning rate that all models tried."""
        common = [lr for lr in self.choices[0].accuracies if all(lr in choice.accuracies for choice in self.choices)]
        return {lr: mean(choice.accuracies[lr] for choice in self.choices) for lr in common}

    @property
    def working_lrs(self) -> list[float]:
        """The learning rates of the grid whose accuracy is within 5 % of the best."""
        best = max(self.accuracies.values(), default=0.0)
        return [lr for lr, accuracy in self.accuracies.items() if accuracy >= WORKING_SHARE * best]

    def tokens_per_second(self, phase: str) -> float | None:
        """Of "train" or "prefill"; the median over the runs that measured it."""
        measured = [run.throughput[f"{phase}_tokens_per_second"] for run in self.choices[-1].runs if run.throughput]
        return median(measured) if measured else None

    @property
    def decode(self) -> dict[int, float]:
        """context -> milliseconds per token; the median over the runs that measured it."""
        found = defaultdict(list)
        for run in self.choices[-1].runs:
            for point in run.throughput["decode"] if run.throughput else ():
                found[point["context"]].append(point["ms_per_token"])
        return {context: median(found[context]) for context in sorted(found)}


@dataclass(frozen=True)
class Results:
    """The rows of the table, the names of those that lack a test, and what the trainings that failed said."""

    rows: list[Row]
    unfinished: list[str]
    failed: list[str]
    runs: list[Run]


def read_results(folder: Path) -> Results:
    """What a folder's records come to; raises as `read_runs` and `gather` do."""
    runs = read_runs(folder)
    done = {run.job for run in runs}
    failures = {r["job"]: r for r in read(folder) if r["kind"] == "recall_failure" and r["job"] not in done}
    results = gather(runs)
    return replace(results, failed=[f"{r['label']} ({r['error']})" for r in failures.values()])


def read_runs(folder: Path) -> list[Run]:
    """The runs recorded in a folder. A last line that a kill left unfinished is passed over, with a warning.

    Raises:
        FileNotFoundError: no records.jsonl. ValueError: a damaged line, no run in the file, or runs that cannot
            stand in one table.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"report: {folder} holds no {FILE_NAME}; give the folder that `subquad recall` wrote")
    records = read(folder)
    runs = [_to_run(path, record) for record in records if record["kind"] == "recall"]
    if not runs:
        raise ValueError(f"report: {path} holds no finished run of kind 'recall' among its {len(records)} records")
    _check_comparable(path, runs)
    return runs


def gather(runs: list[Run]) -> Results:
    """Group the runs by mixer, options, number of layers and width, and choose the learning rate of each model.

    The baseline comes first, then the others by their best accuracy, the rows of one mixer together.

    Raises:
        ValueError: no row has all tests.
    """
    groups = defaultdict(list)
    for run in runs:
        options = run.options | {"layers": run.model["num_layers"]}
        groups[run.mixer, _freeze(options), run.model["d_model"]].append(run)
    has_width = len({width for _, _, width in groups}) > 1
    rows = [Row(_variant(key, groups), has_width, _choices(group)) for key, group in groups.items()]
    tests = {test for row in rows for test in row.segments}
    finished = [row for row in rows if row.segments.keys() == tests]
    if not finished:
        raise ValueError(f"report: the run was interrupted before any mixer had all {len(tests)} tests; resume it")
    best = defaultdict(float)
    for row in finished:
        best[row.mixer] = max(best[row.mixer], row.accuracy)
    finished.sort(key=lambda row: (not row.baseline, -best[row.mixer], row.mixer, _order(row), row.d_model))
    return Results(finished, [row.name for row in rows if row not in finished], failed=[], runs=runs)


def _order(row: Row) -> list[tuple]:
    """Options by value, None before numbers before words."""
    return [(value is not None, isinstance(value, str), value) for value in row.variant.values()]


def tests_of(run: Run) -> dict[Test, float]:
    trained = {part.get("num_examples") for part in run.task.get("train", ())}
    num_examples = trained.pop() if len(trained) == 1 else None
    return {
        Test(part["seq_len"], part["label"], part.get("num_pairs"), num_examples): part["accuracy"]
        for part in run.segments
    }


def _choices(runs: list[Run]) -> tuple[Choice, ...]:
    """One for each set of tests that a model was trained for."""
    models = defaultdict(list)
    for run in runs:
        models[tuple(sorted(tests_of(run), key=lambda test: test[:2]))].append(run)
    order = sorted(models, key=lambda tests: [test[:2] for test in tests])
    return tuple(_choose_lr(models[tests]) for tests in order)


def _choose_lr(runs: list[Run]) -> Choice:
    by_lr = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.lr, run.seed)):
        by_lr[run.lr].append(run)
    accuracies = {lr: mean(run.accuracy for run in same) for lr, same in by_lr.items()}
    best = max(accuracies, key=accuracies.get)
    return Choice(tuple(by_lr[best]), accuracies)


def _variant(key: tuple[str, str, int], groups: dict[tuple[str, str, int], list[Run]]) -> dict:
    """Those options of a group, and its number of layers, that differ among the groups of its mixer."""
    mixer, frozen, _ = key
    siblings = [json.loads(other) for name, other, _ in groups if name == mixer]
    options = json.loads(frozen)
    return {name: options[name] for name in options if any(other.get(name) != options[name] for other in siblings)}


def _to_run(path: Path, record: dict) -> Run:
    names = [field.name for field in fields(Run)]
    if missing := [name for name in names if name not in record]:
        raise ValueError(f"report: a record in {path} lacks {', '.join(missing)}; its keys are {', '.join(record)}")
    return Run(**{name: record[name] for name in names})


def _check_comparable(path: Path, runs: list[Run]) -> None:
    recipes = {run.recipe for run in runs}
    tasks = defaultdict(set)
    for run in runs:
        tasks[tuple(tests_of(run))].add(_freeze(run.task))
    for what, values in (("recipes", recipes), *(("tasks", same) for same in tasks.values())):
        if len(values) > 1:
            raise ValueError(
                f"report: {path} mixes {len(values)} {what}, which cannot be compared: {'; '.join(sorted(values))}; "
                "keep each in a folder of its own"
            )


def _freeze(options: dict) -> str:
    return json.dumps(options, sort_keys=True)
