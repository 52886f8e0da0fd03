"""What the README shows, runs; what it names, exists."""

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

from subquad.benchmarks import records
from subquad.benchmarks.language import language_table
from subquad.benchmarks.report._records import Row, read_results
from subquad.benchmarks.report._style import make_curves

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs(capsys):
    code, _ = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "'auto' runs 'torch'" in capsys.readouterr().out


def test_every_link_and_picture_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_table_of_mqar_2026_says_what_its_records_say():
    rows: dict[str, dict[bool, Row]] = {}
    for row in read_results(ROOT / "benchmarks/results/recall_mqar_2026").rows:
        options = row.longest.options
        convolved = options.get("conv_width") or options.get("token_shift") or options.get("shift", 1) > 1
        rows.setdefault(row.mixer, {})[bool(convolved)] = row
    expected = []
    for mixer, pair in rows.items():
        without, with_one = (cells(pair.get(convolved)) for convolved in (False, True))
        state = f"{pair[max(pair)].state_bytes / 1024:,.1f}"
        expected.append(f"| {mixer} | {state} | {without[0]} | {without[2]} | {' | '.join(with_one)} |")
    assert table("### Every mixer") == sorted(expected)


def test_the_tables_of_width_and_length_say_what_their_records_say():
    expected = []
    for folder in ("recall_zoology_cpu", "recall_zoology_each"):
        for curve in make_curves(read_results(ROOT / "benchmarks/results" / folder).rows):
            for test in curve.rows[0].segments:
                widths = " | ".join(f"{accuracy:.1f}" for accuracy in curve.by_width(test).values())
                expected.append(f"| {test.label} | {curve.rows[0].mixer} | {widths} |")
    assert table("### Width and length") == sorted(expected)


def test_the_table_of_frontier_cpu_says_what_its_records_say():
    expected = []
    for row in read_results(ROOT / "benchmarks/results/recall_frontier_cpu").rows:
        tests = " | ".join(f"{100 * accuracy:.1f}" for accuracy in row.segments.values())
        expected.append(f"| {row.label} | {row.state_bytes / 1024:,.1f} | {100 * row.accuracy:.1f} | {tests} |")
    assert table("### Recall against state") == sorted(expected)


def test_the_tables_of_anchor_functions_say_what_their_records_say():
    expected = []
    for row in read_results(ROOT / "benchmarks/results/recall_anchor_identity_cpu").rows:
        expected.append(f"| {row.mixer} | {' | '.join(held_out(row))} |")
    depths: dict[str, list[Row]] = {}
    for row in read_results(ROOT / "benchmarks/results/recall_anchor_depth_cpu").rows:
        depths.setdefault(row.mixer, []).append(row)
    for mixer, variants in depths.items():
        shallow = [row for row in variants if row.longest.model["num_layers"] == 1]
        (deep,) = (row for row in variants if row not in shallow)
        shallow.sort(key=lambda row: row.longest.options != deep.longest.options)
        found = ["".join(held_out(row)) for row in (*shallow, deep)]
        expected.append(f"| {mixer} | {' | '.join(found if len(found) == 3 else [found[0], '-', found[1]])} |")
    assert table("### One layer, and a shift by one") == sorted(expected)


def held_out(row: Row) -> list[str]:
    """Accuracy where keys stand at positions at which they never stood in training, by number of examples."""
    tests = {t.num_examples: a for t, a in row.segments.items() if "split=test" in t.label}
    return [f"{100 * tests[count]:.1f}" for count in sorted(tests)]


def test_the_table_of_real_text_says_what_its_records_say():
    lines = language_table(records.read(ROOT / "benchmarks/results/text")).splitlines()
    assert table("### Real text") == sorted(line for line in lines[2:] if line.startswith("| "))
    assert lines[-1].removesuffix(".") in README


def test_the_table_of_recurrent_ops_says_what_its_newest_records_say():
    lines = (ROOT / "benchmarks/results/op_throughput_recurrent.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    newest = [r for r in found if r["environment"]["commit"] == found[-1]["environment"]["commit"]]
    chunks = {r["op"]: f"{r['value']:.1f}" for r in found if r["peer"].startswith("fla") and not r["levers"]}
    expected = []
    for op in dict.fromkeys(r["op"] for r in newest if r["peer"] == "sdpa"):
        runs = [r for r in newest if r["op"] == op and r["peer"] == "sdpa"]
        settings = {
            (threads, levers): [
                r for r in runs if r["environment"]["machine"]["threads"] == threads and r["levers"] is levers
            ]
            for threads in (2, 1)
            for levers in (False, True)
        }
        assert [len(of_one) for of_one in settings.values()] == [6, 6, 1, 1]
        ratios = [" to ".join(dict.fromkeys(ends(of_one))) for of_one in settings.values()]
        milliseconds = " / ".join(
            f"{statistics.median(r['points']['ours'] for r in settings[threads, False]):.0f}" for threads in (2, 1)
        )
        beside = f"{chunks[op]} | 3" if op in chunks else "|"
        expected.append(f"| {op} | {milliseconds} | {' | '.join(ratios)} | {runs[0]['goal']:g} | {beside} |")
    expected.append(f"| delta_rule/vector | | | | | | | {chunks['delta_rule/vector']} | 3 |")
    section = README.partition("| op | ours, ms, 2 threads / 1 |")[2].partition("\n\n")[0]
    assert section.splitlines()[2:] == expected


def test_the_time_of_the_scan_is_what_its_records_say():
    """With PyTorch's default allocator and with the lever: on the Xeon first, on the newer machine last."""
    lines = (ROOT / "benchmarks/results/op_throughput_recurrent.jsonl").read_text().splitlines()
    xeon, xeon_lever, default, lever = [r for r in map(json.loads, lines) if r["op"] == "selective_scan"]
    said = (
        "takes {ours:.2f} s where the published step a token takes {peer:.0f} s: {ratio:.0f} times as fast",
        "which the step needs more, {ours:.2f} and {peer:.0f} s: {ratio:.0f} times",
    )
    readme = README.replace("\n", " ")
    for sentence, r in zip(said, (default, lever), strict=True):
        seconds = {side: milliseconds / 1e3 for side, milliseconds in r["points"].items()}
        assert sentence.format(ratio=r["value"], **seconds) in readme
    assert f"gave {xeon['value']:.0f} and {xeon_lever['value']:.0f}" in readme


def test_what_the_xeon_gave_is_what_its_records_say():
    """The last commit that was measured there."""
    lines = (ROOT / "benchmarks/results/op_throughput_recurrent.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    found = [r for r in found if "Xeon" in r["environment"]["machine"]["cpu"] and r["peer"] == "sdpa"]
    of_one = defaultdict(list)
    for r in found:
        if r["environment"]["commit"] == found[-1]["environment"]["commit"]:
            of_one[r["op"], r["environment"]["machine"]["threads"]].append(r)
    decayed = ("linear_attention/scalar", "linear_attention/vector")
    ranges = [" to ".join(ends(of_one[op, threads])) for threads in (2, 1) for op in decayed]
    assert "gave {} and {} on two threads, {} and {} on one".format(*ranges) in README.replace("\n", " ")


def ends(runs: list[dict]) -> list[str]:
    """Lowest and highest value."""
    values = [r["value"] for r in runs]
    return [f"{min(values):.1f}", f"{max(values):.1f}"]


def table(heading: str) -> list[str]:
    """The rows under a heading, sorted, without those that head tables."""
    section = README.partition(heading)[2].partition("\n#")[0]
    return sorted(re.findall(r"^\| (?!mixer|test|---)\S.*\|$", section, re.MULTILINE))


def cells(row: Row | None) -> tuple[str, str, str]:
    """Mean accuracy, that of the hardest test, and how many learning rates work."""
    if row is None:
        return "-", "-", "-"
    hardest = list(row.segments.values())[-1]
    return f"{100 * row.accuracy:.1f}", f"{100 * hardest:.1f}", f"{len(row.working_lrs)} of {len(row.accuracies)}"


def test_the_table_of_peers_says_what_its_record_says():
    """Of the polynomial forms the one with a state is shown; the other's time grows with the square of the length."""
    ratios = {}
    for line in (ROOT / "benchmarks/results/peer_kernels.jsonl").read_text().splitlines()[1:]:
        for row in json.loads(line):
            if row["target"] == "h100" and row["form"] != "fla parallel_based":
                key = row["op"], row["variant"], row["form"], row["pass_name"]
                ratios.setdefault(key, []).append(f"{row['moved'] / row['compulsory']:.2f}")
    section = README.partition("## Kernels, profiled")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"(\d+\.\d\d / \d+\.\d\d) \|", section)) == sorted(map(" / ".join, ratios.values()))
