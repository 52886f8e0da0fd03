"""The command line: one run from end to end, and a clear line for whatever cannot be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from subquad import cli
from subquad.benchmarks.recipes import RECIPES
from subquad.benchmarks.tasks import TASKS
from subquad.cli import _reading
from subquad.kernels import OPS
from subquad.mixers import HYBRIDS, MIXERS

SMALLEST = ["--mixers", "attention,linear_attention", "--seq-lens", "8,16", "--pairs", "1", "--d-model", "8"]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "subquad", *arguments], capture_output=True, text=True, check=False, **options
    )


def refuse(capsys, *arguments: str) -> str:
    """The one line of an error."""
    assert cli.main(list(arguments)) == cli.MISUSE
    said = capsys.readouterr().err
    assert said.startswith("subquad: ") and said.count("\n") == 1
    return said


def test_recall_from_end_to_end_and_its_report_again(tmp_path):
    folder = tmp_path / "run"
    done = run("recall", *SMALLEST, "--steps", "2", "--out", str(folder))
    assert done.returncode == 0, done.stderr
    written = [folder / name for name in ("records.jsonl", "frontier.png", "report.html")]
    for path in written:
        assert f"wrote {path}" in done.stdout and path.stat().st_size > 0
    assert "attention" in done.stdout and "linear_attention" in done.stdout
    records = [json.loads(line) for line in written[0].read_text().splitlines()]
    assert {record["mixer"] for record in records} == {"attention", "linear_attention"}
    assert all(record["steps"] == 2 and record["environment"]["command"] for record in records)

    for path in written[1:]:
        path.unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert all(path.exists() for path in written)


def test_other_tasks_and_learning_rates_from_end_to_end(tmp_path, capsys):
    asked = ["--mixers", "attention", "--tasks", "dyck(seq_len=8), identity", "--lrs", "1e-3,1e-2", "--d-model", "8"]
    assert cli.main(["recall", *asked, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    labels = [[part["label"] for part in record["segments"]] for record in records]
    assert labels == 2 * [["Dyck(seq_len=8)"]] + 2 * [["Identity", "Identity(split=test)"]]
    assert "Dyck" in capsys.readouterr().out
    assert "numbers separated by commas" in refuse(capsys, "recall", "--lrs", "fast")
    assert "unknown task 'dyke'" in refuse(capsys, "recall", "--tasks", "dyke")


def test_a_run_of_failures_alone_ends_with_a_line(tmp_path, capsys, monkeypatch):
    from subquad.benchmarks import _trial

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(_trial, "train", fail)
    said = refuse(capsys, "recall", *SMALLEST, "--steps", "1", "--out", str(tmp_path / "run"))
    assert "holds no finished run" in said


def test_help_comes_without_benchmarks_and_plotting():
    program = (
        "import sys; from subquad.cli import main\n"
        "try: main(['recall', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('subquad.benchmarks', 'matplotlib', 'plotly')\n"
        "assert not [name for name in sys.modules if name.startswith(heavy)]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--seq-lens" in done.stdout, done.stderr


def test_list_names_everything(capsys):
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*OPS, *MIXERS, *HYBRIDS, *RECIPES, *TASKS))
    assert "copying(num_tokens=32, vocab_size=32)" in said


def test_unknown_names_list_the_known_ones(capsys, tmp_path):
    out = ("--out", str(tmp_path / "run"))
    assert "expected one of quick, zoology-figure2, based-frontier" in refuse(capsys, "recall", "--recipe", "x", *out)
    assert "expected some of attention, " in refuse(capsys, "recall", "--mixers", "attention,x", *out)
    assert "expected some of attention, " in refuse(capsys, "throughput", "--mixers", "x", *out)
    assert not (tmp_path / "run").exists()


def test_numbers_that_are_none_are_named(capsys):
    assert "--seq-lens: expected whole numbers separated by commas, got '64,x'" in refuse(
        capsys, "recall", "--seq-lens", "64,x"
    )


def test_a_folder_without_or_with_damaged_records_is_named(capsys, tmp_path):
    assert "records.jsonl" in refuse(capsys, "report", str(tmp_path))
    (tmp_path / "records.jsonl").write_text("{}\n")
    assert "records.jsonl" in refuse(capsys, "report", str(tmp_path))


@pytest.mark.parametrize("missing", cli.EXTRAS)
def test_a_missing_extra_is_one_line_that_says_what_to_install(missing, capsys, monkeypatch):
    find_spec = _reading.importlib.util.find_spec
    monkeypatch.setattr(
        _reading.importlib.util, "find_spec", lambda name, *rest: None if name == missing else find_spec(name, *rest)
    )
    assert f"needs {missing}; install with: pip install 'subquad[bench]'" in refuse(capsys, "list")


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch, tmp_path):
    from subquad.benchmarks import recall

    def interrupt(plan, cluster, track):
        raise KeyboardInterrupt

    monkeypatch.setattr(recall, "run_recall", interrupt)
    assert cli.main(["recall", *SMALLEST, "--out", str(tmp_path)]) == cli.INTERRUPTED
    assert f"--resume --out {Path(tmp_path)}" in capsys.readouterr().err


def test_commas_may_have_spaces_and_end_the_list():
    assert _reading.read_names(" attention, based,") == ("attention", "based") and _reading.read_numbers(
        "seeds", "0, 1"
    ) == (0, 1)
