"""Sweeps that survive: a trial that fails, a full disk, and a cluster whose workers and driver are killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from subquad import cli
from subquad.benchmarks import _trial, records
from subquad.benchmarks._plan import plan_recall
from subquad.benchmarks.recall import CHECKPOINTS, Cluster, run_recall
from subquad.benchmarks.recipes import RECIPES

from .test_recall import comparable, tiny


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", tiny)


def jobs(folder: Path, kind: str) -> list[str]:
    return [record["job"] for record in records.read(folder) if record["kind"] == kind]


@pytest.mark.parametrize("part", ["train", "measure_model"])
def test_a_trial_that_fails_is_recorded_and_tried_again(part, tmp_path, monkeypatch):
    whole = getattr(_trial, part)

    def fail_for_base_conv(model, *rest, **options):
        if type(model.blocks[1].mixer).__name__ == "BaseConv":
            raise RuntimeError("out of memory")
        return whole(model, *rest, **options)

    monkeypatch.setattr(_trial, part, fail_for_base_conv)
    run_recall(plan_recall(recipe="tiny", out=tmp_path / "run"))
    names = jobs(tmp_path / "run", "recall")
    failed = [record for record in records.read(tmp_path / "run") if record["kind"] == "recall_failure"]
    assert names == ["000-attention-d8-lr0.01-seed0", "001-attention-d8-lr0.01-seed1"] and len(failed) == 2
    assert failed[0]["error"] == "RuntimeError: out of memory" and "fail_for_base_conv" in failed[0]["traceback"]
    monkeypatch.setattr(_trial, part, whole)
    run_recall(plan_recall(recipe="tiny", out=tmp_path / "run", resume=True))
    assert len(jobs(tmp_path / "run", "recall")) == 4 and len(jobs(tmp_path / "run", "recall_failure")) == 2
    assert not (tmp_path / "run" / CHECKPOINTS).exists()


@pytest.fixture
def one_thread():
    """As a trial on the cluster has, and what is started here by itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent.parent.parent))
from tests.benchmarks.test_recall import RECIPES, tiny
from subquad import cli
RECIPES["tiny"] = tiny
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if int(sys.argv[3]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
sys.exit(cli.main(["recall", "--recipe", "tiny", "--out", sys.argv[2], "--resume"]))
"""


def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, one_thread):
    """A limit on the size of files stands for the disk: the second line of the records no longer fits."""
    run_recall(plan_recall(recipe="tiny", out=tmp_path / "unbroken"))
    line = len((tmp_path / "unbroken" / records.FILE_NAME).read_bytes().splitlines()[0])
    folder = tmp_path / "full"

    def run(limit: int) -> subprocess.CompletedProcess:
        program = [sys.executable, "-c", FULL, __file__, str(folder), str(limit)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(program, capture_output=True, text=True, check=False, env=environment)

    assert line > 2000
    limit = max(2 * line - 500, *(path.stat().st_size for path in (tmp_path / "unbroken").glob("*.json")))
    stopped = run(limit)
    assert stopped.returncode == cli.MISUSE, stopped.stderr
    assert "File too large; what was finished is kept; go on with the same options and --resume" in stopped.stderr
    assert run(0).returncode == 0
    assert comparable(folder) == comparable(tmp_path / "unbroken")


SWEEP = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent.parent.parent))
from tests.benchmarks.test_recall import RECIPES, plan_recall, run_recall, tiny
from subquad.benchmarks.recall import Cluster
RECIPES["tiny"] = tiny
plan = plan_recall(recipe="tiny", steps=int(sys.argv[3]), out=Path(sys.argv[2]), resume=True)
run_recall(plan, Cluster(cpus=1))
"""


def start_sweep(folder: Path, steps: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SWEEP, __file__, str(folder), str(steps)], start_new_session=True)


def wait_for(found, process) -> None:
    until = time.monotonic() + 120
    while not (happened := found()) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert happened


def test_a_cluster_gives_the_same_records_whoever_is_killed(tmp_path, one_thread):
    pytest.importorskip("ray")
    folder, steps = tmp_path / "killed", 800
    driver = start_sweep(folder, steps)
    try:
        wait_for(lambda: list((folder / CHECKPOINTS).glob("*.pt")) and kill_workers(driver.pid), driver)
        wait_for(lambda: len(records.read(folder)) >= 1, driver)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    half = records.read(folder)
    assert 1 <= len(half) < 4, "the driver was killed in the middle"
    driver = start_sweep(folder, steps)
    assert driver.wait(300) == 0
    found = records.read(folder)
    assert found[: len(half)] == half and {record["kind"] for record in found} == {"recall"}
    assert len({record["job"] for record in found}) == len(found) == 4
    assert all(record["environment"]["command"][0] == "-c" for record in found), "the driver's, not the worker's"
    run_recall(plan_recall(recipe="tiny", steps=steps, out=tmp_path / "here"))
    assert sorted(comparable(folder), key=lambda r: r["job"]) == comparable(tmp_path / "here")


def kill_workers(driver: int) -> list[int]:
    """Workers of the driver's cluster that train; killed at once."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, session = (
                (path / "cmdline").read_text(),
                int((path / "stat").read_text().rsplit(")", 1)[1].split()[3]),
            )
        except (FileNotFoundError, ProcessLookupError):
            continue
        if session == driver and words.startswith("ray::_train_on_worker"):
            os.kill(int(path.name), signal.SIGKILL)
            found.append(int(path.name))
    return found


def test_a_worker_that_always_dies_is_a_failure_and_not_the_end(tmp_path):
    pytest.importorskip("ray")
    plan = plan_recall(recipe="tiny", out=tmp_path, seeds=[0])
    program = DYING.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert jobs(tmp_path, "recall") == [plan.jobs[0].name] and jobs(tmp_path, "recall_failure") == [plan.jobs[1].name]
    (failed,) = (record for record in records.read(tmp_path) if record["kind"] == "recall_failure")
    assert failed["error"].startswith("WorkerCrashedError")


DYING = """
import os, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent.parent.parent))
from tests.benchmarks.test_recall import RECIPES, plan_recall, run_recall, tiny
from subquad.benchmarks import _places
from subquad.benchmarks.recall import Cluster
RECIPES["tiny"] = tiny
whole = _places._train_on_worker

def dies(plan, job, *rest):
    if job.candidate.mixer == "base_conv":
        os.kill(os.getpid(), 9)
    return whole(plan, job, *rest)

_places._train_on_worker, _places.RETRIES = dies, 0
run_recall(plan_recall(recipe="tiny", out=Path("{folder}"), seeds=[0], resume=True), Cluster())
"""


def test_what_a_trial_takes_is_checked():
    for options in (dict(cpus=0), dict(gpus=-1)):
        with pytest.raises(ValueError, match="at least 1 cpu and no less than 0 gpus"):
            Cluster(**options)
