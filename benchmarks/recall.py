"""The main job: train mixers on tasks beside the baseline, and measure their state and their speed."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from subquad.kernels.levers import Levers, cpu_levers

from . import records
from ._display import Display
from ._plan import SETTINGS_FILE, Job, Plan, describe, parse_tasks, plan_recall
from .model import TinyLM
from .throughput import DECODE_STEPS, measure_model
from .training import Run, seeded_model, train

__all__ = ["Plan", "parse_tasks", "plan_recall", "run_recall"]

CHECKPOINTS = "checkpoints"


def run_recall(plan: Plan) -> list[dict]:
    """Measure the speed of every model that has no record yet, then train it; one line in the records for each.

    Returns:
        all records of the folder, those that an interrupted run left included.
    """
    begun_with = _begun_with(plan.folder)
    done = records.read(plan.folder)
    finished = {record["job"] for record in done}
    left = [job for job in plan.jobs if job.name not in finished]
    on_cpu = plan.device.type == "cpu"
    with cpu_levers(matmul=on_cpu and begun_with["matmul"], allocator=on_cpu) as levers, Display() as display:
        if not (plan.folder / SETTINGS_FILE).exists():
            _write_settings(plan, levers)
        speeds = {record["speed_key"]: record["throughput"] for record in done}
        _measure(plan, left, speeds, display)
        display.start_training(sum(job.problem.schedule.steps for job in left))
        for job in left:
            record = _train(plan, job, speeds[job.speed_key], levers, display)
            records.append(plan.folder, record)
            _checkpoint(plan, job).unlink(missing_ok=True)
            display.finish_model(record)
    shutil.rmtree(plan.folder / CHECKPOINTS, ignore_errors=True)
    return records.read(plan.folder)


def _begun_with(folder: Path) -> dict:
    """A resumed run keeps the route of products that it began with: the other one gives other bits."""
    path = folder / SETTINGS_FILE
    return json.loads(path.read_text())["levers"] if path.exists() else {"matmul": True}


def _write_settings(plan: Plan, levers: Levers) -> None:
    content = {"settings": plan.settings, "levers": {"matmul": levers.matmul.on}}
    beside = plan.folder / f"{SETTINGS_FILE}.new"
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(plan.folder / SETTINGS_FILE)


def _measure(plan: Plan, jobs: list[Job], speeds: dict[str, dict], display: Display) -> None:
    """Add to `speeds` what is missing. All models are timed before any is trained, so under like conditions."""
    missing = {job.speed_key: job for job in jobs if job.speed_key not in speeds}
    display.start_measuring(len(missing))
    for key, job in missing.items():
        length = max(job.length, max(plan.recipe.contexts) + 1 + DECODE_STEPS)
        speeds[key] = measure_model(
            _build(plan, job, length),
            seq_len=job.length,
            batch=job.batch_size,
            contexts=plan.recipe.contexts,
            device=plan.device,
            dtype=plan.dtype,
            budget=plan.recipe.throughput_seconds,
        )
        display.finish_measuring()


def _train(plan: Plan, job: Job, throughput: dict, levers: Levers, display: Display) -> dict:
    """One training, and its record."""
    model = _build(plan, job, job.length)
    problem, checkpoint = job.problem, _checkpoint(plan, job)
    checkpoint.parent.mkdir(exist_ok=True)
    display.start_model(job.label, problem.schedule.steps)
    run = train(
        model,
        problem.segments,
        problem.tests,
        problem.schedule,
        lr=job.lr,
        seed=job.seed,
        dtype=plan.dtype,
        checkpoint=checkpoint,
        on_step=display.on_step,
    )
    state_bytes = model.state_size(max(task.seq_len for task in problem.tests))
    return _record(plan, job, model, run, state_bytes, throughput, levers)


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
            {"label": task.label, "seq_len": task.seq_len, "accuracy": accuracy, "chance": task.chance}
            for task, accuracy in zip(problem.tests, run.accuracies, strict=True)
        ],
        "loss_curve": [[point.step, point.loss] for point in run.curve],
        "accuracy_curve": [[point.step, point.accuracy] for point in run.curve],
        "diverged": run.diverged,
        "state_bytes": state_bytes,
        "train_seconds": run.seconds,
        "throughput": throughput,
        "levers": asdict(levers),
        "environment": records.environment(plan.device, job.seed),
    }


def _build(plan: Plan, job: Job, length: int) -> TinyLM:
    model = seeded_model(lambda: job.build(length), job.seed)
    return model.to(plan.device)


def _checkpoint(plan: Plan, job: Job) -> Path:
    return plan.folder / CHECKPOINTS / f"{job.name}.pt"
