"""What the README shows, runs; what it names, exists."""

import json
import re
from pathlib import Path

from subquad.benchmarks.report._records import Row, read_results

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
    section = README.partition("### Every mixer")[2].partition("\n#")[0]
    assert sorted(re.findall(r"^\| [a-z].*\|$", section, re.MULTILINE)[1:]) == sorted(expected)


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
