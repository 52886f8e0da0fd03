"""What a run of the recall benchmark will do: resolved and found possible before it starts."""

import ast
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import torch

from subquad.mixers import HYBRIDS, MIXERS

from . import records
from .model import TinyLM
from .recipes import RECIPES, Candidate, Problem, Recipe
from .tasks import MQAR, TASKS, Task
from .training import DTYPES

SETTINGS_FILE = "settings.json"
RUNS = Path("runs")


@dataclass(frozen=True)
class Job:
    """One model to train."""

    name: str
    candidate: Candidate
    problem: Problem
    d_model: int
    lr: float
    seed: int

    @property
    def label(self) -> str:
        """What the terminal calls it."""
        options = ", ".join(f"{name}={value}" for name, value in self.candidate.options.items())
        mixer = f"{self.candidate.mixer}({options})"
        return f"{mixer} {self.problem.label(self.problem.tests[0])} d={self.d_model} lr={self.lr:g} seed={self.seed}"

    @property
    def tasks(self) -> tuple[Task, ...]:
        return (*(segment.task for segment in self.problem.segments), *self.problem.tests)

    @property
    def length(self) -> int:
        """The longest sequence it meets."""
        return max(task.seq_len for task in self.tasks)

    @property
    def vocab_size(self) -> int:
        return max(task.vocab_size for task in self.tasks)

    @property
    def batch_size(self) -> int:
        return max(segment.batch_size for segment in self.problem.segments)

    @property
    def bottleneck(self) -> bool:
        return any(task.bottleneck for task in self.tasks)

    def build(self, length: int) -> TinyLM:
        """The model, for sequences of up to `length` tokens."""
        return self.candidate.build(self.d_model, self.vocab_size, length, self.bottleneck)

    @property
    def speed_key(self) -> str:
        """The same for jobs that differ in nothing that speed depends on."""
        options = json.dumps(self.candidate.options)
        model = f"{self.candidate.mixer} {options} x{len(self.candidate.layers)} d={self.d_model}"
        return f"{model} v={self.vocab_size} t={self.length} b={self.batch_size}"


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    folder: Path

    @cached_property
    def jobs(self) -> tuple[Job, ...]:
        """Every candidate on every problem, with every width, learning rate and seed."""
        grid = [
            (candidate, problem, d_model, lr, seed)
            for candidate, problem in product(self.recipe.candidates, self.recipe.problems())
            for d_model, lr, seed in product(candidate.d_models, self.recipe.lrs, self.recipe.seeds)
        ]
        return tuple(
            Job(f"{number:03d}-{candidate.mixer}-d{d_model}-lr{lr:g}-seed{seed}", candidate, problem, d_model, lr, seed)
            for number, (candidate, problem, d_model, lr, seed) in enumerate(grid)
        )

    @property
    def settings(self) -> dict:
        """All that decides the results but the machine, as JSON gives it back."""
        dtype = str(self.dtype).removeprefix("torch.")
        courses = [
            {
                "train": [describe(part.task) | {"share": part.share, "examples": part.num_examples} for part in train],
                "tests": [describe(task) for task in tests],
                "name": name,
                "num_examples": num_examples,
            }
            for train, tests, name, num_examples in self.recipe.courses
        ]
        own = asdict(self.recipe) | {"courses": courses}
        return json.loads(json.dumps(own | {"device": self.device.type, "dtype": dtype}))


def describe(task: Task) -> dict:
    """Its name and fields, as settings and records hold them."""
    return {"task": type(task).__name__, **asdict(task)}


def plan_recall(
    *,
    recipe: str = "quick",
    mixers: Sequence[str] = (),
    tasks: Sequence[Task] = (),
    seq_lens: Sequence[int] = (),
    pairs: Sequence[int] = (),
    d_models: Sequence[int] = (),
    steps: int | None = None,
    lrs: Sequence[float] = (),
    seeds: Sequence[int] = (),
    give_up_after: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    out: Path | None = None,
    resume: bool = False,
) -> Plan:
    """Resolve what was asked for and check that all of it can be done; last of all, make the folder.

    Args:
        recipe: a name in RECIPES. What follows replaces its own, where given.
        mixers: names in MIXERS or HYBRIDS.
        tasks: one model is trained for each.
        seq_lens, pairs: of MQAR: one size for each two that stand at the same place; a single one goes with all of the
            other.
        d_models: widths of every mixer.
        steps: updates of each training.
        lrs: learning rates at which every model is trained.
        seeds: trainings of each model and learning rate.
        give_up_after: share of the steps after which a training that is near chance stops; None lets all go on.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        dtype: "float32", or "bfloat16" for autocast.
        out: folder to write to; if None a new one under runs/, or with `resume` the newest of this recipe.
        resume: go on with what the folder holds, or begin if it holds nothing.

    Raises:
        ValueError: unknown names, sizes that cannot be, no such device, a folder that holds another run or cannot be
            written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"recall: unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    chosen = _choose(recipe, mixers, tasks, seq_lens, pairs, d_models)
    chosen = replace(
        chosen,
        steps=chosen.steps if steps is None else steps,
        give_up_after=chosen.give_up_after if give_up_after is None else give_up_after,
        lrs=tuple(lrs) or chosen.lrs,
        seeds=tuple(seeds) or chosen.seeds,
    )
    plan = Plan(chosen, _device(device), DTYPES[dtype], out or _default_folder(recipe, resume))
    _check_models(plan.jobs)
    _check_contents(plan, resume)
    _make_folder(plan.folder)
    return plan


def _choose(
    name: str,
    mixers: Sequence[str],
    tasks: Sequence[Task],
    seq_lens: Sequence[int],
    pairs: Sequence[int],
    d_models: Sequence[int],
) -> Recipe:
    """The recipe, with the tasks and models asked for in place of its own."""
    if name not in RECIPES:
        raise ValueError(f"recall: unknown recipe {name!r}; expected one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]()
    if tasks:
        if seq_lens or pairs:
            raise ValueError("recall: seq_lens and pairs are MQAR's; where tasks are named, give sizes with each task")
        recipe = recipe.with_tasks(tasks)
    if seq_lens or pairs:
        recipe = recipe.with_sizes(_sizes(recipe, seq_lens, pairs))
    if d_models:
        recipe = recipe.with_widths(tuple(d_models))
    if unknown := [mixer for mixer in mixers if mixer not in MIXERS and mixer not in HYBRIDS]:
        known = ", ".join((*MIXERS, *HYBRIDS))
        raise ValueError(f"recall: unknown mixer {', '.join(map(repr, unknown))}; expected some of {known}")
    if mixers:
        candidates = tuple(candidate for mixer in dict.fromkeys(mixers) for candidate in recipe.candidates_of(mixer))
        recipe = replace(recipe, candidates=candidates)
    return recipe


def parse_tasks(text: str) -> tuple[Task, ...]:
    """Tasks as the command line names them: "dyck, copying(num_tokens=16, vocab_size=32)".

    Raises:
        ValueError: no such task or field, or sizes that cannot be.
    """
    try:
        expressions = ast.parse(f"[{text}]", mode="eval").body.elts
        named = [(ast.unparse(getattr(e, "func", e)), getattr(e, "args", []), _keywords(e)) for e in expressions]
    except (SyntaxError, ValueError):
        raise ValueError(f"recall: expected tasks as name, name(field=value, ...), got {text!r}") from None
    tasks = []
    for name, without_names, given in named:
        if name not in TASKS:
            raise ValueError(f"recall: unknown task {name!r}; expected some of {', '.join(TASKS)}")
        known = [field.name for field in fields(TASKS[name])]
        unknown = [repr(field) for field in given if field not in known]
        if unknown or without_names:
            what = ", ".join(unknown) or "fields without names"
            raise ValueError(f"recall: {name} has no {what}; its fields are {', '.join(known)}")
        tasks.append(TASKS[name](**given))
    return tuple(tasks)


def _keywords(expression: ast.expr) -> dict:
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in getattr(expression, "keywords", [])}


def _sizes(recipe: Recipe, seq_lens: Sequence[int], pairs: Sequence[int]) -> list[tuple[int, int]]:
    """Lengths and numbers of pairs, one by one; those that are not given are the recipe's."""
    own = [part.task for course in recipe.courses for part in course.train]
    if not all(isinstance(task, MQAR) for task in own):
        raise ValueError(f"recall: seq_lens and pairs are MQAR's, which {recipe.name} does not train on; give tasks")
    seq_lens = seq_lens or [task.seq_len for task in own]
    pairs = pairs or [task.num_pairs for task in own]
    count = max(len(seq_lens), len(pairs))
    if any(len(values) not in (1, count) for values in (seq_lens, pairs)):
        raise ValueError(
            "recall: seq_lens and pairs go together one by one, so they must be equally many, or one of them single; "
            f"got seq_lens={list(seq_lens)} and pairs={list(pairs)}"
        )
    both = [list(values) * (count // len(values)) for values in (seq_lens, pairs)]
    return list(zip(*both, strict=True))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"recall: unknown device {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("recall: device 'cuda' was asked for, but PyTorch sees no GPU here; use --device cpu")
    return torch.device(name)


def _default_folder(recipe: str, resume: bool) -> Path:
    begun = sorted(path.parent for path in RUNS.glob(f"{recipe}-*/{SETTINGS_FILE}"))
    return begun[-1] if resume and begun else RUNS / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"


def _check_models(jobs: Sequence[Job]) -> None:
    """Build every model once, without memory: what cannot be built is refused by the part that cannot."""
    for job in jobs:
        if job.d_model < 1 or job.seed < 0:
            raise ValueError(
                f"recall: d_model must be at least 1 and a seed at least 0, got d_model={job.d_model}, seed={job.seed}"
            )
    with torch.device("meta"):
        for job in {job.speed_key: job for job in jobs}.values():
            job.build(job.length)


def _check_contents(plan: Plan, resume: bool) -> None:
    """Records of two settings never meet in one folder, and none are added unasked."""
    settings_path = plan.folder / SETTINGS_FILE
    found = records.read(plan.folder)
    if not settings_path.exists() and not found:
        return
    if not resume:
        raise ValueError(
            f"recall: {plan.folder} already holds a run with {len(found)} records; go on with it by --resume, or "
            "choose another folder by --out"
        )
    if not settings_path.exists():
        raise ValueError(f"recall: {plan.folder} holds records but no {SETTINGS_FILE}, so it cannot be gone on with")
    begun = json.loads(settings_path.read_text())["settings"]
    wanted = plan.settings
    if differing := [name for name in wanted if wanted[name] != begun.get(name)]:
        raise ValueError(
            f"recall: {plan.folder} was begun with another setting, it differs in {', '.join(differing)}; repeat the "
            "options it was begun with, or choose another folder by --out"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        why = error.strerror
        raise ValueError(f"recall: cannot write to {folder}: {why}; choose another folder by --out") from None
