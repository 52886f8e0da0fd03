"""What the README shows, runs; what it names, exists."""

import json
import re
from pathlib import Path

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
