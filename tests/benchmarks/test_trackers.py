"""What trackers are told, by stand-ins of their packages; TensorBoard's files by itself, where it is installed."""

import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from subquad.benchmarks import trackers

from .fake_records import make_record

RECORD = make_record("based") | {"dtype": "float32", "loss_curve": [[20, 1.5], [40, None]],
                                 "accuracy_curve": [[20, 0.25], [40, 0.5]]}  # fmt: skip
TOLD = [
    ({"accuracy": 0.25, "loss": 1.5}, 20),
    ({"accuracy": 0.5}, 40),
    ({f"test/{part['label']}": part["accuracy"] for part in RECORD["segments"]}, 400),
]


@pytest.fixture
def package(monkeypatch):
    """A package in the place of the tracker's, found and imported."""

    def stand_in(name: str) -> MagicMock:
        module = MagicMock(spec=ModuleType(name), __spec__=MagicMock())
        for attribute in ("init", "log", "finish", "set_experiment", "start_run", "log_params", "log_metrics"):
            setattr(module, attribute, MagicMock())
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return stand_in


def settings_of(call) -> dict:
    return call.kwargs.get("config") or call.args[0]


def test_wandb_is_told_every_point(package, tmp_path):
    wandb = package("wandb")
    trackers.tracker("wandb")(RECORD, tmp_path)
    asked = wandb.init.call_args
    assert asked.kwargs["name"] == RECORD["job"] and asked.kwargs["group"] == tmp_path.name
    assert settings_of(asked)["mixer"] == "based" and settings_of(asked)["tests"][0] == "4 in 64"
    run = wandb.init.return_value
    assert [(call.args[0], call.kwargs["step"]) for call in run.log.call_args_list] == TOLD
    run.finish.assert_called_once()


def test_mlflow_is_told_every_point(package, tmp_path):
    mlflow = package("mlflow")
    trackers.tracker("mlflow")(RECORD, tmp_path)
    assert mlflow.start_run.call_args.kwargs["run_name"] == RECORD["job"]
    assert settings_of(mlflow.log_params.call_args)["d_model"] == 64
    assert [(call.args[0], call.kwargs["step"]) for call in mlflow.log_metrics.call_args_list] == TOLD
    trackers.tracker("mlflow")(RECORD | {"segments": [{"label": "Dyck(seq_len=8)", "accuracy": 0.5}]}, tmp_path)
    assert mlflow.log_metrics.call_args.args[0] == {"test/Dyck_seq_len_8_": 0.5}  # its names allow no more


def test_trackio_is_told_every_point(package, tmp_path):
    trackio = package("trackio")
    trackers.tracker("trackio")(RECORD, tmp_path)
    assert settings_of(trackio.init.call_args)["lr"] == 1e-2
    assert [(call.args[0], call.kwargs["step"]) for call in trackio.log.call_args_list] == TOLD
    trackio.finish.assert_called_once()


def test_tensorboard_reads_every_point(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers.tracker("tensorboard")(RECORD, tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard" / RECORD["job"]))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("accuracy")] == [(20, 0.25), (40, 0.5)]
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [(20, 1.5)]
    assert [point.step for point in events.Scalars("test/4 in 64")] == [400]


def test_what_is_not_there_is_refused(monkeypatch):
    with pytest.raises(
        ValueError, match="unknown tracker 'paper'; expected one of tensorboard, wandb, mlflow, trackio"
    ):
        trackers.tracker("paper")
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mlflow is not installed; install with: pip install mlflow"):
        trackers.tracker("mlflow")
