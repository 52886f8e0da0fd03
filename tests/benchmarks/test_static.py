"""`subquad check --static`: what it fails on, what it stores, and that a compiler's death costs one call only."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from subquad import cli
from subquad.benchmarks.profile.kernel_facts import Needs
from subquad.benchmarks.profile.targets import GPUS
from subquad.benchmarks.static import budget, compiling, fast_cases, run_static, sources, tritons
from subquad.benchmarks.static.cases import ONLY_FORMS, WIDTHS, Case, cases_of
from subquad.benchmarks.static.compiling import Part, compile_part
from subquad.benchmarks.static.rows import Row, row_of, violations
from subquad.benchmarks.static.tritons import Triton, find_triton
from subquad.kernels import OPS
from subquad.kernels._configs import TABLES

CASE = Case("short_conv", "silu", 4, "bfloat16", {"b": 4})
ROW = Row(
    "short_conv", "silu", 4, "bfloat16", "h100", "3.7.1", "0", traffic={"forward": 1.0, "backward": 1.5},
    loop_spill=8, spill=24, shared=1024, registers=100, worst={"loop_spill": "k1", "spill": "k2", "shared": "k3"},
)  # fmt: skip


@pytest.mark.parametrize("changes, message", [
    (dict(error="k: OutOfResources: no"), "h100, Triton 3.7.1: k: OutOfResources: no"),
    (dict(shared=227 * 1024 + 1), "k3: 232449 bytes of shared memory, the limit of the target is 232448"),
    (dict(hot_spill=4, worst=ROW.worst | {"hot_spill": "k4"}),
     "k4: 4 bytes spilled in one pass of the hot loop, a hot loop may not spill"),
    (dict(loop_spill=12), "k1: 12 bytes spilled in loops, the budget is 8"),
    (dict(spill=28), "k2: 28 bytes spilled, the budget is 24"),
    (dict(shared=1040), "k3: 1040 bytes of shared memory, the budget is 1024"),
    (dict(traffic={"forward": 1.0, "backward": 1.52}),
     "the backward pass moves 1.52 times the compulsory bytes, the budget is 1.5"),
    (dict(traffic={"forward": None, "backward": 1.5}), "traffic of the forward pass depends on values in memory"),
    (dict(traffic={"forward": 1.0, "backward": 1.5, "third": 1.0}), "the third pass moves 1.0 times"),
])  # fmt: skip
def test_what_is_heavier_than_its_budget_fails(changes, message):
    found = list(violations(replace(ROW, **changes), ROW))
    assert message in found[0]
    assert found[0].startswith("short_conv, silu, width 4, bfloat16, h100, Triton 3.7.1: ")


@pytest.mark.parametrize("changes", [
    {}, dict(spill=0), dict(shared=0), dict(registers=255), dict(traffic={"forward": 1.0099, "backward": 1.0}),
])  # fmt: skip
def test_what_is_not_heavier_passes(changes):
    assert not list(violations(replace(ROW, **changes), ROW))


@pytest.mark.parametrize("changes", [
    dict(dtype="float32"), dict(op="long_conv", target="b200"),
    dict(op="linear_attention", case="decay a channel", width=256),
], ids=str)  # fmt: skip
def test_what_is_excused_may_spill_as_much_as_its_budget(changes):
    spilling = replace(ROW, **changes, hot_spill=4, worst=ROW.worst | {"hot_spill": "k4"})
    assert not list(violations(spilling, spilling))
    for what in changes:  # and nothing but that
        assert list(violations(replace(spilling, **{what: getattr(ROW, what)}), spilling))
    [message] = violations(spilling, replace(spilling, hot_spill=0))
    assert "4 bytes spilled in one pass of the hot loop, the budget is 0" in message


def test_what_has_no_budget_fails_whatever_it_needs():
    for stored in (None, replace(ROW, error="k: no")):
        [message] = violations(ROW, stored)
        assert "has no stored budget; store it with --update" in message


def test_a_row_is_the_worst_of_its_kernels():
    kernels = [("fwd", Needs(64, 0, 2048)), ("bwd", Needs(255, 24, 1024, 8, 4)), ("sum", Needs(32, 0, 0))]
    row = row_of(ROW, kernels, {"forward": 1.0})
    assert (row.registers, row.spill, row.loop_spill, row.hot_spill, row.shared) == (255, 24, 8, 4, 2048)
    assert row.worst == dict.fromkeys(("registers", "spill", "loop_spill", "hot_spill"), "bwd") | {"shared": "fwd"}


@pytest.mark.parametrize("op", OPS)
def test_every_dtype_and_width_is_compiled_for_every_target(op):
    for target in GPUS:
        cases = list(cases_of(op, target))
        dtypes = ONLY_FORMS.get(target, ("float32", "float16", "bfloat16"))
        assert {(x.dtype, x.width) for x in cases} == {(dtype, width) for dtype in dtypes for width in WIDTHS[op]}
        assert len({(x.label, x.width, x.dtype) for x in cases}) == len(cases)
    assert any(x.sizes["t"] == 1 for x in cases_of(op, "h100")) or op == "long_conv"


def test_fast_cases_are_cases():
    assert [case.op for case in fast_cases()] == list(OPS)
    assert all(case in cases_of(case.op, "h100") for case in fast_cases())


def test_what_is_stored_is_whole_and_of_these_sources():
    stored = budget.load()
    assert {row.op for row in stored} == set(OPS)
    for op, target, triton in sorted({(row.op, row.target, row.triton) for row in stored}):
        waiting = budget.without_current(Part(op, target, Triton(triton), tuple(cases_of(op, target))), stored)
        assert not waiting.cases, (
            f"the budget of {op} for {target}, Triton {triton}, is not of these sources in {len(waiting.cases)} calls; "
            f"make it anew with `subquad check --static --update --ops {op}` and commit {budget.RESULTS}"
        )
    assert not [row.label for row in stored if budget.case_of(row) is None]


def test_one_call_of_each_op_is_compiled_and_within_its_budget():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "subquad", "check", "--static", "--fast"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"0 violations in {len(OPS)} calls" in done.stdout


def test_storing_replaces_the_same_call_only_and_drops_what_is_no_case(tmp_path):
    others = [replace(ROW, case="decode"), replace(ROW, target="mi300"), replace(ROW, triton="3.9.0")]
    budget.store([ROW, replace(ROW, case="gone"), *others], tmp_path)
    budget.store([replace(ROW, registers=90)], tmp_path)
    rows = budget.load(tmp_path)
    assert [(x.case, x.target, x.triton, x.registers) for x in rows] == [
        ("decode", "h100", "3.7.1", 100), ("silu", "h100", "3.7.1", 90), ("silu", "h100", "3.9.0", 100),
        ("silu", "mi300", "3.7.1", 100),
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == [budget.SOURCE, budget.TABLE]


def test_the_readable_table_shows_the_worst_of_both_tritons(tmp_path):
    heavier = replace(ROW, triton="3.9.0", spill=30, hot_spill=4, traffic={"forward": 1.1, "backward": None})
    decode = replace(ROW, case="decode", traffic={"forward": 1.0}, loop_spill=0, spill=0)
    budget.store([ROW, heavier, decode, replace(ROW, width=8, error="k: a|b")], tmp_path)
    text = (tmp_path / budget.TABLE).read_text()
    assert "| silu | 4 | bfloat16 | 1.10 / ?, 100, 30 B of which 8 in loops, 4 in the hot loop, 1 |" in text
    assert "| decode | 4 | bfloat16 | 1.00 / -, 100, 0 B, 1 |" in text
    assert "| silu | 8 | bfloat16 | error |" in text and "k: a/b" in text
    assert "| short_conv | h100 | 4 | 1 | 1 | 3 | 30 | 1.0 | 1.10 | 1.50 |" in text


def test_current_is_what_would_be_compiled_from_the_same():
    part = Part("short_conv", "l40s", Triton("3.7.1"), tuple(cases_of("short_conv", "l40s")))
    asked = "short_conv_fwd_kernel, bfloat16, 4"
    config = TABLES["short_conv_fwd_kernel"].row("cuda", torch.bfloat16, 4)
    first, *others = (
        Row(x.op, x.label, x.width, x.dtype, "l40s", "3.7.1", sources.fingerprint(x), configs={asked: config})
        for x in part.cases
    )

    def waiting(*rows: Row, part: Part = part) -> int:
        return len(budget.without_current(part, rows).cases)

    assert waiting(first, *others) == 0
    assert waiting(*others) == 1
    assert waiting(replace(first, source="other"), *others) == 1
    assert waiting(replace(first, configs={asked: config | {"num_warps": 16}}), *others) == 1
    assert waiting(replace(first, configs={"no_kernel, bfloat16, 4": config}), *others) == 1
    assert waiting(first, *others, part=replace(part, triton=Triton("3.9.0"))) == len(part.cases)


def test_fingerprint_is_of_code_and_sizes():
    assert sources.fingerprint(CASE) == sources.fingerprint(replace(CASE, label="other"))
    assert sources.fingerprint(CASE) != sources.fingerprint(replace(CASE, sizes={"b": 5}))
    assert sources.fingerprint(CASE) != sources.fingerprint(replace(CASE, op="long_conv"))
    as_sent = json.loads(json.dumps(asdict(replace(CASE, sizes={"starts": (0, 16)}))))  # to the process that compiles
    assert sources.fingerprint(Case(**as_sent)) == sources.fingerprint(replace(CASE, sizes={"starts": (0, 16)}))
    names = {path.name for path in sources.kernel_sources("short_conv")}
    assert names >= {"_triton.py", "_target.py"} and not names & {"_torch.py", "_configs.py"}


def test_comments_and_docstrings_are_no_code(tmp_path):
    texts = ['"""A."""\nx = 1  # one\ndef f():\n    "B"\n    return 2', "x = 1\ndef f():\n    return 2", "x = 2"]
    codes = []
    for i, text in enumerate(texts):
        path = tmp_path / f"{i}.py"
        path.write_text(text)
        codes.append(sources._code(path))
    assert codes[0] == codes[1] != codes[2]


DYING = """
import json, sys
target, file = sys.argv[1:]
cases = json.load(sys.stdin)
with open(file, "a") as lines:
    print(json.dumps({"triton": "3.7.1"}), file=lines)
    for case in cases:
        if case["label"] == "deadly":
            sys.exit("LLVM ERROR: no such thing")
        row = dict(case=case["label"], op="short_conv", width=4, dtype="bfloat16", target=target, source="0")
        print(json.dumps(row | {"triton": "3.7.1"}), file=lines, flush=True)
"""


def test_a_dead_compiler_fails_one_call_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(compiling, "PROGRAM", "import sys; sys.argv.pop(1)\n" + DYING)
    labels = ("first", "deadly", "third", "deadly")
    cases = tuple(replace(CASE, label=label) for label in labels)
    rows = compile_part(Part("short_conv", "h100", Triton("3.7.1"), cases))
    assert [row.case for row in rows] == list(labels)
    assert [row.error for row in rows] == [
        None, "the compiling process ended with exit code 1: LLVM ERROR: no such thing",
    ] * 2  # fmt: skip


def test_a_compiler_that_does_not_start_ends_the_check(monkeypatch):
    monkeypatch.setattr(compiling, "PROGRAM", "raise SystemExit('no module')")
    with pytest.raises(
        RuntimeError, match=r"short_conv for h100, bfloat16, Triton 3\.7\.1: the compiling process did not start"
    ):
        compile_part(Part("short_conv", "h100", Triton("3.7.1"), (CASE,)))


def test_updating_goes_on_where_it_was_stopped(monkeypatch, tmp_path, capsys):
    compiled = []

    def compile_it(part):
        compiled.append(part.target)
        return [
            replace(ROW, case=x.label, width=x.width, dtype=x.dtype, target=part.target, source=sources.fingerprint(x))
            for x in part.cases
        ]

    monkeypatch.setattr("subquad.kernels._dispatch.INTERPRET", False)
    monkeypatch.setattr(compiling, "compile_part", compile_it)
    asked = dict(ops=("short_conv",), triton="3.7.1", folder=tmp_path)
    monkeypatch.setattr(tritons, "installed", lambda: Triton("3.7.1"))
    assert run_static(targets=("a100",), update=True, **asked) == 0
    assert run_static(targets=("a100", "mi300"), update=True, **asked) == 0
    assert compiled == ["a100"] * 3 + ["mi300"] * 3  # a part for each dtype
    assert "15 of 30 calls were stored already" in capsys.readouterr().out
    assert {row.target for row in budget.load(tmp_path)} == {"a100", "mi300"}
    # and what is compared is not stored
    monkeypatch.setattr(compiling, "compile_part", lambda part: [replace(x, spill=99) for x in compile_it(part)])
    assert run_static(targets=("a100",), **asked) == 1
    assert "k2: 99 bytes spilled, the budget is 24" in capsys.readouterr().out
    assert {row.spill for row in budget.load(tmp_path)} == {24}


@pytest.mark.parametrize("asked, message", [
    (dict(ops=("conv",)), "check: unknown op 'conv'; expected some of causal_attention, "),
    (dict(targets=("v100",)), "check: unknown target 'v100'; expected some of a100, h100, b200, l40s, mi300"),
    (dict(fast=True, update=True), "check: --fast compiles a few calls only"),
    (dict(), "check: TRITON_INTERPRET=1 turns the compiler off; unset it"),
])  # fmt: skip
def test_what_cannot_be_checked_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        run_static(**asked)


def test_options_of_the_static_check_need_it(capsys):
    assert cli.main(["check", "--update"]) == cli.MISUSE
    assert "--targets, --triton, --update and --fast go with --static" in capsys.readouterr().err


def make_triton(folder, version: str):
    (folder / "triton").mkdir(parents=True)
    (folder / f"triton-{version}.dist-info").mkdir()
    (folder / f"triton-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: triton\nVersion: {version}\n"
    )
    return folder


def test_a_triton_is_found_by_version_or_in_a_folder(tmp_path):
    folder = make_triton(tmp_path / "mine", "4.0.0")
    assert find_triton(str(folder)) == Triton("4.0.0", folder)
    assert find_triton(tritons.installed().version) == Triton(tritons.installed().version, None)
    cached = make_triton(tmp_path / "cache" / "4.1.0", "4.1.0")
    assert find_triton("4.1.0", cache=tmp_path / "cache") == Triton("4.1.0", cached)
    with pytest.raises(ValueError, match=r"no Triton in .*; make it with: pip install --no-deps --target"):
        find_triton(str(tmp_path))
    with pytest.raises(ValueError, match=r"--triton must be a version such as 3\.9\.0 or a folder .* got 'newest'"):
        find_triton("newest")


@pytest.mark.parametrize("code", [0, 1])
def test_a_version_is_installed_whole_or_not_at_all(code, tmp_path, monkeypatch, capsys):
    def pip(command, **_):
        folder = tritons.Path(command[command.index("--target") + 1])
        (folder / "half").mkdir() if code else make_triton(folder / "x", "4.2.0")
        for path in [] if code else list((folder / "x").iterdir()):
            path.rename(folder / path.name)
        return subprocess.CompletedProcess(command, code, "", "ERROR: no network")

    monkeypatch.setattr(tritons.subprocess, "run", pip)
    if code:
        with pytest.raises(
            ValueError, match=r"Triton 4\.2\.0 could not be installed: ERROR: no network; install it by"
        ):
            find_triton("4.2.0", cache=tmp_path)
        assert list(tmp_path.iterdir()) == []
    else:
        assert find_triton("4.2.0", cache=tmp_path) == Triton("4.2.0", tmp_path / "4.2.0")
    assert "installing Triton 4.2.0 into" in capsys.readouterr().err


SPILLING = """
import json, sys
from pathlib import Path
import triton, triton.language as tl, torch
from subquad.benchmarks.profile.capture import pretend
from subquad.benchmarks.profile.kernel_facts import read_needs
from subquad.benchmarks.profile.targets import GPUS
from spilling import kernel
with pretend(GPUS[sys.argv[1]]) as session:
    _, captured = session.record(lambda: kernel[(1,)](torch.empty(1 << 16), 100, BLOCK=4096, ROWS=8, num_warps=1))
[launch] = captured.launches
needs = read_needs(launch.kernel, launch.log, GPUS[sys.argv[1]])
print(json.dumps([needs.spill, needs.loop_spill, needs.hot_spill]))
"""
SPILLING_KERNEL = """
import triton, triton.language as tl
@triton.jit
def kernel(x_ptr, T, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    a = tl.load(x_ptr + offs)
    b = tl.load(x_ptr + offs + BLOCK)
    c = tl.load(x_ptr + offs + 2 * BLOCK)
    for t in range(T):
        a, b, c = b * c + t, c * a - t, a * b
    tl.store(x_ptr + offs, a + b * c)
"""


@pytest.mark.parametrize("target", ["h100", "mi300"])
def test_a_loop_that_spills_is_seen_in_machine_code(target, tmp_path):
    """384 float32 values live in a loop of a thread that has 255 registers, or on AMD 192 of 512."""
    (tmp_path / "spilling.py").write_text(SPILLING_KERNEL)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = SPILLING.replace("BLOCK=4096", f"BLOCK={4096 if target == 'h100' else 16384}")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{program}", target],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    spill, in_loops, hot = json.loads(done.stdout)
    assert spill > 0 and in_loops == hot > 0


def test_rows_survive_the_file():
    assert Row(**json.loads(json.dumps(asdict(ROW)))) == ROW
