"""The main job: train mixers on tasks beside the baseline, and measure their state and their speed."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path

from subquad.kernels.levers import Levers

from . import records
from ._display import Display
from ._places import Cluster, Here, OnRay
from ._plan import SETTINGS_FILE, Job, Plan, parse_tasks, plan_recall
from ._trial import CHECKPOINTS, checkpoint, failure, levers_of

__all__ = ["Cluster", "Plan", "parse_tasks", "plan_recall", "run_recall"]


def run_recall(
    plan: Plan, cluster: Cluster | None = None, track: Callable[[dict, Path], None] | None = None
) -> list[dict]:
    """Measure the speed of every model that has no record yet, then train it; one line in the records for each.

    A trial that raises is recorded with its error, and the others go on; a resumed run tries it again. A run that is
    killed loses nothing that was finished.

    Args:
        cluster: run trials side by side on Ray; one after the other in this process if None.
        track: told of each record that is written, and of the folder; see `trackers`.

    Returns:
        all records of the folder, those that an interrupted run left included.
    """
    begun_with = _begun_with(plan.folder)
    done = [record for record in records.read(plan.folder) if record["kind"] == "recall"]
    finished = {record["job"] for record in done}
    left = [job for job in plan.jobs if job.name not in finished]
    with levers_of(plan, begun_with["matmul"]) as levers, Display() as display, ExitStack() as stack:
        if not (plan.folder / SETTINGS_FILE).exists():
            _write_settings(plan, levers)
        here = nullcontext(Here(plan, levers, display))
        place = stack.enter_context(here if cluster is None else OnRay(plan, levers, cluster))
        speeds = _measure(place, left, {record["speed_key"]: record["throughput"] for record in done}, display)
        for job in left:
            if "error" in speeds[job.speed_key]:
                records.append(plan.folder, failure(plan, job, speeds[job.speed_key]))
        left = [job for job in left if "error" not in speeds[job.speed_key]]
        display.start_training(sum(job.problem.schedule.steps for job in left))
        for job, record in place.train(left, speeds):
            records.append(plan.folder, record)
            if record["kind"] == "recall":
                checkpoint(plan, job).unlink(missing_ok=True)
                if track is not None:
                    track(record, plan.folder)
            display.finish_model(job, record)
    everything = records.read(plan.folder)
    if {job.name for job in plan.jobs} <= {record["job"] for record in everything if record["kind"] == "recall"}:
        shutil.rmtree(plan.folder / CHECKPOINTS, ignore_errors=True)
    return everything


def _measure(place: Here | OnRay, jobs: list[Job], speeds: dict[str, dict], display: Display) -> dict[str, dict]:
    """What is missing is added. All models are timed before any is trained, so under like conditions."""
    missing = {job.speed_key: job for job in jobs if job.speed_key not in speeds}
    display.start_measuring(len(missing))
    for job, speed in place.measure(list(missing.values())):
        speeds[job.speed_key] = speed
        display.finish_measuring(f"{job.label}: failed, {speed['error']}" if "error" in speed else None)
    return speeds


def _begun_with(folder: Path) -> dict:
    """A resumed run keeps the route of products that it began with: the other one gives other bits."""
    path = folder / SETTINGS_FILE
    return json.loads(path.read_text())["levers"] if path.exists() else {"matmul": True}


def _write_settings(plan: Plan, levers: Levers) -> None:
    content = {"settings": plan.settings, "levers": {"matmul": levers.matmul.on}}
    beside = plan.folder / f"{SETTINGS_FILE}.new"
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(plan.folder / SETTINGS_FILE)
