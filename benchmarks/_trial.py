"""One trial of a sweep: what is measured of a model, how it is trained, and the record of it; here or on a worker."""

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from subquad.kernels.levers import Levers, cpu_levers

from . import records
from ._plan import Job, Plan, describe
from .model import TinyLM
from .throughput import DECODE_STEPS, measure_model
from .training import Run, seeded_model, train

CHECKPOINTS = "checkpoints"
FRAMES = 3  # the last ones of a traceback are kept
# What a trial may raise by itself. The disk is not its own: where that is full, the other trials would fail alike.
FAILURES = (
    RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError, AssertionError, LookupError, AttributeError,
    ImportError,
)  # fmt: skip


def levers_of(plan: Plan, matmul: bool) -> AbstractContextManager[Levers]:
    """The switches of this process that a run uses; `matmul` is false if the run was begun without that one."""
    on_cpu = plan.device.type == "cpu"
    return cpu_levers(matmul=on_cpu and matmul, allocator=on_cpu)


def measure(plan: Plan, job: Job) -> dict:
    """Speed of the job's model, as records hold it, or what `trouble` says of it."""
    length = max(job.length, max(plan.recipe.contexts) + 1 + DECODE_STEPS)
    try:
        return measure_model(
            build(plan, job, length),
            seq_len=job.length,
            batch=job.batch_size,
            contexts=plan.recipe.contexts,
            device=plan.device,
            dtype=plan.dtype,
            budget=plan.recipe.throughput_seconds,
        )
    except FAILURES as error:
        return trouble(error)


def run_trial(
    plan: Plan,
    job: Job,
    throughput: dict,
    levers: Levers,
    on_step: Callable[[int, float | None], None] = lambda step, accuracy: None,
) -> dict:
    """Train and test; the record. A trial that fails has one too, of another kind, and keeps its checkpoint."""
    path = checkpoint(plan, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        model = build(plan, job, job.length)
        problem = job.problem
        run = train(
            model,
            problem.segments,
            problem.tests,
            problem.schedule,
            lr=job.lr,
            seed=job.seed,
            dtype=plan.dtype,
            checkpoint=path,
            on_step=on_step,
        )
        state_bytes = model.state_size(max(task.seq_len for task in problem.tests))
    except FAILURES as error:
        return failure(plan, job, trouble(error))
    return _record(plan, job, model, run, state_bytes, throughput, levers)


def trouble(error: Exception) -> dict:
    """What was raised, and where."""
    frames = traceback.format_exception(error)[-FRAMES:]
    return {"error": f"{type(error).__name__}: {error}", "traceback": "".join(frames)}


def failure(plan: Plan, job: Job, what: dict) -> dict:
    """The record of a trial that raised."""
    environment = records.environment(plan.device, job.seed)
    return {"kind": "recall_failure", "job": job.name, "label": job.label, **what, "environment": environment}


def build(plan: Plan, job: Job, length: int) -> TinyLM:
    return seeded_model(lambda: job.build(length), job.seed).to(plan.device)


def checkpoint(plan: Plan, job: Job) -> Path:
    return plan.folder / CHECKPOINTS / f"{job.name}.pt"


def _record(plan: Plan, job: Job, model: TinyLM, run: Run, state_bytes: int, throughput: dict, levers: Levers) -> dict:
    candidate, problem = job.candidate, job.problem
    return {
        "kind": "recall",
        "job": job.name,
        "speed_key": job.speed_key,
        "recipe": plan.recipe.name,
        "mixer": candidate.mixer,
        "baseline": candidate.baseline,
        "options": candidate.options,
        "model": {
            "d_model": job.d_model,
            "num_layers": len(candidate.layers),
            "layers": [asdict(layer) for layer in candidate.layers],
            "learned_positions": candidate.learned_positions,
            "mlp": candidate.mlp,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "task": {
            "train": [
                {"batch_size": segment.batch_size, "share": segment.share, "num_examples": segment.num_examples}
                | describe(segment.task)
                for segment in problem.segments
            ],
            "test": [describe(task) for task in problem.tests],
        },
        "schedule": asdict(problem.schedule),
        "dtype": plan.settings["dtype"],
        "lr": job.lr,
        "seed": job.seed,
        "steps": run.steps,
        "accuracy": run.accuracy,
        "segments": [
            {
                "label": problem.label(task),
                "accuracy": accuracy,
                "chance": task.chance,
                **describe(task),
                "seq_len": task.seq_len,
            }
            for task, accuracy in zip(problem.tests, run.accuracies, strict=True)
        ],
        "loss_curve": [[point.step, point.loss] for point in run.curve],
        "accuracy_curve": [[point.step, point.accuracy] for point in run.curve],
        "diverged": run.diverged,
        "given_up": run.given_up,
        "state_bytes": state_bytes,
        "train_seconds": run.seconds,
        "throughput": throughput,
        "levers": asdict(levers),
        "environment": records.environment(plan.device, job.seed),
    }
