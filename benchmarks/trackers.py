"""Copies of finished trainings for trackers of experiments; the records stay the source of truth."""

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

PROJECT = "subquad"


def tracker(name: str) -> Callable[[dict, Path], None]:
    """A function of a record and of the run's folder that writes the training to a tracker.

    Args:
        name: a key of TRACKERS.

    Raises:
        ValueError: no such tracker, or its package is not installed.
    """
    if name not in TRACKERS:
        raise ValueError(f"track: unknown tracker {name!r}; expected one of {', '.join(TRACKERS)}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"track: {name} is not installed; install with: pip install {name}")
    return TRACKERS[name]


def _tensorboard(record: dict, folder: Path) -> None:
    """Below `folder`/tensorboard, one run for each training."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder / "tensorboard" / record["job"]) as writer:
        writer.add_text("settings", f"```\n{json.dumps(_settings(record), indent=1)}\n```")
        for step, values in _points(record):
            for name, value in values.items():
                writer.add_scalar(name, value, step)


def _wandb(record: dict, folder: Path) -> None:
    import wandb

    run = wandb.init(
        project=PROJECT, group=folder.name, name=record["job"], config=_settings(record), dir=folder, reinit=True
    )
    for step, values in _points(record):
        run.log(values, step=step)
    run.finish()


def _mlflow(record: dict, folder: Path) -> None:
    import mlflow

    mlflow.set_experiment(PROJECT)
    with mlflow.start_run(run_name=record["job"], tags={"group": folder.name}):
        mlflow.log_params(_settings(record))
        for step, values in _points(record):
            allowed = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}
            mlflow.log_metrics(allowed, step=step)


def _trackio(record: dict, folder: Path) -> None:
    import trackio

    trackio.init(project=PROJECT, group=folder.name, name=record["job"], config=_settings(record))
    for step, values in _points(record):
        trackio.log(values, step=step)
    trackio.finish()


TRACKERS: dict[str, Callable[[dict, Path], None]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def _settings(record: dict) -> dict:
    """What tells trainings apart."""
    own = ("recipe", "mixer", "options", "lr", "seed", "dtype")
    model = {name: record["model"][name] for name in ("d_model", "num_layers", "num_parameters")}
    tests = [part["label"] for part in record["segments"]]
    return {name: record[name] for name in own} | model | {"tests": tests, "state_bytes": record["state_bytes"]}


def _points(record: dict) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and values: the curves of the training, then what the tests gave, at the last step."""
    for (step, loss), (_, accuracy) in zip(record["loss_curve"], record["accuracy_curve"], strict=True):
        yield step, {"accuracy": accuracy} | ({} if loss is None else {"loss": loss})
    yield record["steps"], {f"test/{part['label']}": part["accuracy"] for part in record["segments"]}
