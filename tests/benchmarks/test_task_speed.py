"""The smallest run of the generators' benchmark."""

import pytest

from subquad.benchmarks import records, task_speed
from subquad.benchmarks.tasks import Compression, NoisyRecall


@pytest.mark.parametrize("task", [Compression(), NoisyRecall(num_pairs=4)], ids=str)
def test_drawing_is_measured_beside_a_step(task):
    found = task_speed.measure_task(task)
    assert found["task"] == type(task).__name__ and found["rows_per_second"] > 0 and found["share_of_a_step"] > 0


def test_records_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(task_speed, "TASKS", {"compression": Compression})
    monkeypatch.setattr(task_speed, "NUM_LARGE", 10)
    monkeypatch.setattr("sys.argv", ["task_speed", "--out", str(tmp_path / "out")])
    task_speed.main()
    assert [record["task"] for record in records.read(tmp_path / "out")] == ["64 in 256", "Compression"]
    assert "of a step" in capsys.readouterr().out
