"""Records: one whole line for each run, whatever was interrupted."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from subquad.benchmarks import records

FIRST, SECOND = {"kind": "recall", "job": "a"}, {"kind": "recall", "job": "b"}


def test_what_was_appended_is_read(tmp_path):
    assert records.read(tmp_path) == []
    records.append(tmp_path, FIRST)
    records.append(tmp_path, SECOND)
    assert records.read(tmp_path) == [FIRST, SECOND]
    assert (tmp_path / records.FILE_NAME).read_text().count("\n") == 2


@pytest.mark.parametrize("half", ['{"kind": "rec', "{", '{"kind": "recall", "job": "c"}', '{"name": "é'.encode()[:-1]])
def test_half_a_line_is_passed_over_and_then_overwritten(half, tmp_path):
    path = tmp_path / records.FILE_NAME
    records.append(tmp_path, FIRST)
    with path.open("ab") as file:
        file.write(half.encode() if isinstance(half, str) else half)
    with pytest.warns(UserWarning, match="last line was cut off"):
        assert records.read(tmp_path) == [FIRST]
    records.append(tmp_path, SECOND)
    assert records.read(tmp_path) == [FIRST, SECOND]


@pytest.mark.parametrize("line", ["{broken}", "[1, 2]", "{}", "", "\x00\x00"])
def test_a_damaged_line_in_the_middle_is_named(line, tmp_path):
    (tmp_path / records.FILE_NAME).write_text(f"{json.dumps(FIRST)}\n{line}\n{json.dumps(SECOND)}\n")
    with pytest.raises(ValueError, match=r"records\.jsonl: line 2 is not a record"):
        records.read(tmp_path)


def test_what_json_cannot_say_becomes_null(tmp_path):
    infinite = FIRST | {"loss_curve": [[1, float("nan")], (2, float("inf"))], "lr": 0.1}
    records.append(tmp_path, infinite)
    assert records.read(tmp_path) == [FIRST | {"loss_curve": [[1, None], [2, None]], "lr": 0.1}]


def test_command_keeps_no_folder_of_the_machine(monkeypatch):
    arguments = [
        "/somewhere/bin/subquad",
        "recall",
        "--out",
        "/home/me/runs/a",
        "--out=/home/me/b",
        "--recipe=quick",
        "runs/c",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    command = records.environment(torch.device("cpu"), seed=0)["command"]
    assert command == ["subquad", "recall", "--out", "a", "--out=b", "--recipe=quick", "runs/c"]


def test_environment_says_where_and_with_what():
    environment = records.environment(torch.device("cpu"), seed=3)
    assert environment["seed"] == 3
    assert environment["machine"]["cores"] == os.cpu_count() and environment["machine"]["gpu"] is None
    assert environment["machine"]["threads"] == torch.get_num_threads()
    assert environment["versions"]["torch"] == torch.__version__ and environment["versions"]["subquad"]
    json.dumps(environment, allow_nan=False)


def git(folder, *arguments):
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)


def test_commit_is_that_of_the_source_and_says_if_files_differ(tmp_path):
    source = tmp_path / "records.py"
    source.write_text("# one\n")
    assert records._commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert records._commit(tmp_path) is None  # inside a repository, but not part of it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD").stdout.strip()
    assert records._commit(tmp_path) == head
    (tmp_path / "untracked").write_text("results are no source\n")
    assert records._commit(tmp_path) == head
    source.write_text("# two\n")
    assert records._commit(tmp_path) == f"{head}-dirty"


def test_the_commit_is_that_from_which_the_process_began(monkeypatch):
    before = records.environment(torch.device("cpu"), 0)["commit"]
    monkeypatch.setattr(records, "_commit", lambda folder: "a later one")
    assert records.environment(torch.device("cpu"), 0)["commit"] == before


def test_a_writer_that_is_killed_leaves_whole_lines(tmp_path):
    """A process appends without end and is killed; every line it left but the last is whole."""
    program = (
        "import sys; from pathlib import Path; from subquad.benchmarks import records\n"
        "number = 0\n"
        "while True:\n"
        "    records.append(Path(sys.argv[1]), {'kind': 'recall', 'number': number, 'long': 'x' * 10000})\n"
        "    number += 1\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    path = tmp_path / records.FILE_NAME
    while writer.poll() is None and not (path.exists() and path.stat().st_size > 200_000):
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    assert [json.loads(line)["number"] for line in whole.splitlines()] == list(range(whole.count(b"\n")))
