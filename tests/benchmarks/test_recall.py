"""The main job on a recipe of seconds: its records, its refusals, and that a kill in between leaves no trace."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from subquad.benchmarks import _plan, _trial, records
from subquad.benchmarks._plan import SETTINGS_FILE, plan_recall
from subquad.benchmarks.recall import CHECKPOINTS, parse_tasks, run_recall
from subquad.benchmarks.recipes import RECIPES, Course, Part, Recipe, quick
from subquad.benchmarks.report._records import read_results
from subquad.benchmarks.tasks import MQAR, TASKS, Compression, Copying, Dyck, FuzzyRecall
from subquad.mixers import MIXERS

TIMED = ("train_seconds", "throughput")  # what two equal runs may differ in, with the command that made them


def tiny() -> Recipe:
    """Three trainings of a second at most."""
    tasks = tuple(MQAR(seq_len=seq_len, num_pairs=pairs, vocab_size=16) for seq_len, pairs in ((16, 2), (8, 1)))
    recipe = replace(quick(), courses=(Course(tuple(map(Part, tasks)), tasks),)).with_widths((8,))
    candidates = (*recipe.candidates_of("attention"), *recipe.candidates_of("base_conv"))
    return replace(
        recipe,
        name="tiny",
        candidates=candidates,
        max_batch=4,
        steps=30,
        num_evaluations=10,
        num_validation=8,
        num_test=16,
        lrs=(1e-2,),
        seeds=(0, 1),
        contexts=(8,),
        throughput_seconds=0.01,
    )


@pytest.fixture(autouse=True)
def recipes(monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", tiny)


def comparable(folder: Path) -> list[dict]:
    """The records of a folder without times."""
    found = records.read(folder)
    for record in found:
        for name in TIMED:
            del record[name]
        del record["levers"], record["environment"]["command"]
    return found


def test_a_record_tells_all(tmp_path):
    found = run_recall(plan_recall(recipe="tiny", out=tmp_path / "run"))
    assert [record["job"] for record in found] == [
        "000-attention-d8-lr0.01-seed0",
        "001-attention-d8-lr0.01-seed1",
        "002-base_conv-d8-lr0.01-seed0",
        "003-base_conv-d8-lr0.01-seed1",
    ]
    first, last = found[0], found[-1]
    assert first["baseline"] and not last["baseline"] and first["options"] == {"num_heads": 1}
    assert first["model"]["d_model"] == 8 and first["model"]["num_layers"] == 2
    assert first["model"]["num_parameters"] == 16 * 8 + 3 * 2 * 8 + (8 * 8 + 8 + 8 * 3 + 8) + 4 * 8 * 8
    assert [part["label"] for part in first["segments"]] == ["2 in 16", "1 in 8"]
    assert first["accuracy"] == pytest.approx(sum(part["accuracy"] for part in first["segments"]) / 2)
    assert [step for step, _ in first["loss_curve"]] == list(range(3, 31, 3)) and first["steps"] == 30
    # keys and values of all tokens, and the two inputs that a filter of width 3 holds
    assert first["state_bytes"] == 4 * (2 * 16 * 8 + 2 * 8)
    assert last["state_bytes"] == 4 * (16 * 8 + 2 * 8)
    assert first["throughput"]["train_tokens_per_second"] > 0 and first["throughput"]["prefill_tokens_per_second"] > 0
    assert [point["context"] for point in first["throughput"]["decode"]] == [8]
    assert first["throughput"] == found[1]["throughput"] != last["throughput"]
    assert set(first["levers"]) == {"matmul", "allocator"} and first["environment"]["seed"] == 0
    assert first["lr"] == 1e-2 and found[1]["seed"] == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {records.FILE_NAME, SETTINGS_FILE}


def test_seeds_differ_and_runs_repeat(tmp_path):
    for name in ("a", "b"):
        run_recall(plan_recall(recipe="tiny", out=tmp_path / name))
    found = comparable(tmp_path / "a")
    assert found == comparable(tmp_path / "b")
    assert found[0]["loss_curve"] != found[1]["loss_curve"]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_recall import RECIPES, plan_recall, run_recall, tiny
RECIPES["tiny"] = tiny
run_recall(plan_recall(recipe="tiny", steps=100, seeds=[0], out=Path(sys.argv[2])))
"""


def test_a_killed_run_resumes_to_the_same_records(tmp_path):
    folder = tmp_path / "killed"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", KILLED, __file__, str(folder)], env=environment)
    path, checkpoints = folder / records.FILE_NAME, folder / CHECKPOINTS
    # The first training has its record, and the second is in the middle.
    while process.poll() is None and not (path.exists() and list(checkpoints.glob("001*.pt"))):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    half = records.read(folder)
    assert len(half) == 1 and list(checkpoints.glob("001*.pt"))
    with path.open("a") as file:
        file.write('{"kind": "recall", "job": "001')  # as if it had been killed while it wrote

    with pytest.warns(UserWarning, match="cut off"):
        resumed = run_recall(plan_recall(recipe="tiny", steps=100, seeds=[0], out=folder, resume=True))
    run_recall(plan_recall(recipe="tiny", steps=100, seeds=[0], out=tmp_path / "unbroken"))
    assert comparable(folder) == comparable(tmp_path / "unbroken")
    assert resumed[0] == half[0]


def test_resuming_a_finished_run_changes_nothing(tmp_path, monkeypatch):
    found = run_recall(plan_recall(recipe="tiny", out=tmp_path))
    before = (tmp_path / records.FILE_NAME).read_bytes()
    monkeypatch.setattr(_trial, "train", None)
    assert run_recall(plan_recall(recipe="tiny", out=tmp_path, resume=True)) == found
    assert (tmp_path / records.FILE_NAME).read_bytes() == before


def test_a_resumed_run_keeps_the_levers_it_began_with(tmp_path, monkeypatch):
    plan = plan_recall(recipe="tiny", out=tmp_path)
    content = {"settings": plan.settings, "levers": {"matmul": False}}
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(content))
    found = run_recall(plan)
    assert all(record["levers"]["matmul"] == {"on": False, "why": "not asked for"} for record in found)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"recipe": "slow"}, "unknown recipe 'slow'; expected one of quick, zoology-figure2, based-frontier"),
        ({"mixers": ["attention", "magic"]}, "unknown mixer 'magic'; expected some of attention, sliding_window"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; expected one of float32, bfloat16"),
        ({"device": "tpu"}, "unknown device 'tpu'; expected auto, cpu or cuda"),
        ({"seq_lens": [16, 32], "pairs": [1, 2, 3]}, r"equally many.*got seq_lens=\[16, 32\] and pairs=\[1, 2, 3\]"),
        ({"seq_lens": [16], "pairs": [5]}, r"num_pairs \* \(num_passes \+ 1\) = 20; got MQAR"),
        ({"seq_lens": [-16], "pairs": [1]}, "seq_len must be even and at least"),
        ({"seq_lens": [512], "pairs": [128]}, "vocab_size must be at least"),
        ({"tasks": [Dyck()], "pairs": [2]}, "where tasks are named, give sizes with each task"),
        ({"d_models": [0]}, "d_model must be at least 1"),
        ({"d_models": [7]}, "even"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"seeds": [-1]}, "a seed at least 0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_written(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plan_recall(**options, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cuda_is_refused_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(_plan.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="PyTorch sees no GPU here"):
        plan_recall(device="cuda", out=tmp_path / "run")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/subquad")):
        with pytest.raises(ValueError, match=f"cannot write to {folder}"):
            plan_recall(recipe="tiny", out=folder)


def test_a_folder_that_holds_a_run_is_not_written_unasked(tmp_path):
    run_recall(plan_recall(recipe="tiny", out=tmp_path, seeds=[0]))
    with pytest.raises(ValueError, match="already holds a run with 2 records; go on with it by --resume"):
        plan_recall(recipe="tiny", out=tmp_path, seeds=[0])
    with pytest.raises(ValueError, match="begun with another setting, it differs in seeds, steps"):
        plan_recall(recipe="tiny", out=tmp_path, resume=True, steps=7)
    (tmp_path / SETTINGS_FILE).unlink()
    with pytest.raises(ValueError, match=f"holds records but no {SETTINGS_FILE}"):
        plan_recall(recipe="tiny", out=tmp_path, seeds=[0], resume=True)


def test_without_out_every_run_has_its_own_folder_and_resume_takes_the_newest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = plan_recall(recipe="tiny")
    assert first.folder.parent == Path("runs") and first.folder.name.startswith("tiny-")
    for name in ("tiny-20200101-000000", "tiny-20210101-000000", "quick-20220101-000000"):
        (tmp_path / "runs" / name).mkdir(exist_ok=True)
        content = {"settings": first.settings, "levers": {"matmul": False}}
        (tmp_path / "runs" / name / SETTINGS_FILE).write_text(json.dumps(content))
    assert plan_recall(recipe="tiny", resume=True).folder == Path("runs/tiny-20210101-000000")


def test_one_length_goes_with_all_pairs_and_missing_ones_are_the_recipes(tmp_path):
    def sizes(name, **options):
        (problem,) = plan_recall(recipe="tiny", out=tmp_path / name, **options).recipe.problems()
        return [(task.seq_len, task.num_pairs) for task in problem.tests]

    assert sizes("a", seq_lens=[16], pairs=[1, 2, 3]) == [(16, 1), (16, 2), (16, 3)]
    assert sizes("b", seq_lens=[16, 32], pairs=[2]) == [(16, 2), (32, 2)]
    assert sizes("c", seq_lens=[32, 64]) == [(32, 2), (64, 1)]


def test_every_mixer_can_be_asked_for(tmp_path):
    plan = plan_recall(recipe="tiny", mixers=[*MIXERS, "hybrid"], d_models=[8, 16], out=tmp_path)
    assert {job.candidate.mixer for job in plan.jobs} == {*MIXERS, "hybrid"}
    assert {job.d_model for job in plan.jobs} == {8, 16}


def test_a_model_is_trained_for_each_task_and_tested_as_the_task_says(tmp_path):
    tasks = parse_tasks("compression(seq_len=6), fuzzy_recall(seq_len=12), composition")
    plan = plan_recall(recipe="tiny", mixers=["attention"], tasks=tasks, seeds=[0], lrs=[1e-3, 1e-2], out=tmp_path)
    found = run_recall(plan)
    assert [record["lr"] for record in found] == 3 * [1e-3, 1e-2]
    assert [[part["label"] for part in record["segments"]] for record in found[::2]] == [
        ["Compression(seq_len=6)"],
        ["FuzzyRecall(seq_len=12, full_keys=True)"],
        ["Composition", "Composition(split=test)", "Composition(split=test, which=held_out)"],
    ]
    assert found[0]["task"]["train"][0]["task"] == "Compression" and found[0]["segments"][0]["chance"] == 1 / 15
    assert plan_recall(recipe="tiny", mixers=["attention"], tasks=tasks, seeds=[0], lrs=[1e-3, 1e-2], out=tmp_path,
                       resume=True).settings == plan.settings  # fmt: skip
    with pytest.raises(ValueError, match="differs in courses"):
        plan_recall(recipe="tiny", mixers=["attention"], tasks=tasks[:2], seeds=[0], lrs=[1e-3, 1e-2], out=tmp_path,
                    resume=True)  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_trained_on(name, tmp_path):
    plan = plan_recall(recipe="tiny", mixers=["attention"], tasks=[TASKS[name]()], seeds=[0], steps=1, out=tmp_path)
    plan = replace(plan, recipe=replace(plan.recipe, num_validation=1, num_test=1, max_batch=2))
    (record,) = run_recall(plan)
    assert len(record["segments"]) == len(TASKS[name]().tests) and not record["diverged"]


def test_tasks_of_the_command_line():
    assert parse_tasks("") == ()
    assert parse_tasks("dyck, copying(num_tokens=16, vocab_size=9)") == (Dyck(), Copying(num_tokens=16, vocab_size=9))
    assert parse_tasks("fuzzy_recall(full_keys=True)") == (FuzzyRecall(full_keys=True),)
    assert parse_tasks("compression()") == (Compression(),)
    for text, message in (
        ("dyke", "unknown task 'dyke'; expected some of mqar, forgetting_mqar"),
        ("copying(16)", "copying has no fields without names; its fields are num_tokens, vocab_size"),
        ("copying(tokens=16)", "copying has no 'tokens'; its fields are num_tokens, vocab_size"),
        ("copying(num_tokens=0)", "num_tokens must be at least 1"),
        ("copying(num_tokens=", "expected tasks as name"),
        ("copying(num_tokens=open('x'))", "expected tasks as name"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            parse_tasks(text)


def test_courses_of_the_same_tests_are_told_apart_in_records_and_reports(tmp_path):
    task = Dyck(seq_len=8)
    courses = tuple(Course((Part(task, num_examples=n),), task.tests, name=f"{n} examples") for n in (4, 8))
    plan = plan_recall(recipe="tiny", mixers=["attention"], tasks=[task], seeds=[0], steps=2, out=tmp_path)
    found = run_recall(replace(plan, recipe=replace(plan.recipe, courses=courses)))
    labels = [record["segments"][0]["label"] for record in found]
    assert labels == ["Dyck(seq_len=8), 4 examples", "Dyck(seq_len=8), 8 examples"]
    assert list(read_results(tmp_path).rows[0].by_size("num_examples")) == [4, 8]
