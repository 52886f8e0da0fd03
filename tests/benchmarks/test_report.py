"""The report is made from records alone: its numbers, its refusals, and files that stand on their own."""

import io
import json
import re
import subprocess
import sys
import textwrap

import pytest
from rich.console import Console

from subquad import mixers
from subquad.benchmarks.report import _style, latex_table, markdown_table, print_table, write_report
from subquad.benchmarks.report._costs import costs
from subquad.benchmarks.report._figure import draw_frontier
from subquad.benchmarks.report._records import gather, read_runs
from subquad.benchmarks.report._style import make_curves
from subquad.benchmarks.report._tables import format_bytes, format_count, make_columns, trial_columns

from .fake_records import CONTEXTS, MIXERS, TESTS, make_record, quick_run, write_records


def rows_of(folder):
    return gather(read_runs(folder)).rows


def rows_from(tmp_path, *records):
    return rows_of(write_records(tmp_path, list(records)))


def printed(folder, **options):
    file = io.StringIO()
    print_table(folder, Console(file=file, **options))
    return file.getvalue()


def test_best_learning_rate_by_the_mean_over_seeds(tmp_path):
    grid = {(1e-3, 0): 0.2, (1e-3, 1): 0.3, (1e-2, 0): 0.9, (1e-2, 1): 0.1, (3e-2, 0): 0.6, (3e-2, 1): 0.58}
    segments = [{"label": "4 in 64", "seq_len": 64}]
    records = [
        make_record("based", lr=lr, seed=seed, accuracy=a, segments=[segments[0] | {"accuracy": a}])
        for (lr, seed), a in grid.items()
    ]
    (row,) = rows_from(tmp_path, *records)
    assert row.longest.lr == 3e-2  # 1e-2 has the best run, but not the best mean
    assert row.accuracy == pytest.approx(0.59)
    assert row.spread == pytest.approx(0.02)
    assert row.accuracies == pytest.approx({1e-3: 0.25, 1e-2: 0.5, 3e-2: 0.59})


def test_working_learning_rates_are_within_five_percent_of_the_best(tmp_path):
    accuracies = {1e-4: 0.5, 1e-3: 0.77, 1e-2: 0.8, 1e-1: 0.75}
    records = [
        make_record("based", lr=lr, accuracy=a, segments=[{"label": "4 in 64", "seq_len": 64, "accuracy": a}])
        for lr, a in accuracies.items()
    ]
    (row,) = rows_from(tmp_path, *records)
    assert row.working_lrs == [1e-3, 1e-2]
    assert make_columns([row])[-1].cells == ["0.01 (0.001 to 0.01, 2 of 4)"]


def test_segments_are_means_over_seeds_at_the_best_rate(tmp_path):
    records = [make_record("hyena", seed=seed) for seed in (0, 1)]
    (row,) = rows_from(tmp_path, *records)
    for index, (seq_len, num_pairs) in enumerate(TESTS):
        test = (seq_len, f"{num_pairs} in {seq_len}", num_pairs, None)
        assert row.segments[test] == pytest.approx(sum(r["segments"][index]["accuracy"] for r in records) / 2)
    assert row.accuracy == pytest.approx(sum(r["accuracy"] for r in records) / 2)


def test_rows_are_told_apart_by_options_and_width(tmp_path):
    windows = [make_record("sliding_window", options={"num_heads": 1, "window": w}) for w in (16, 32)]
    wide = make_record("sliding_window", d_model=128, options={"num_heads": 1, "window": 16})
    names = [row.name for row in rows_from(tmp_path, *windows, wide)]
    assert names == [
        "sliding_window (window=16), width 64",
        "sliding_window (window=16), width 128",
        "sliding_window (window=32), width 64",
    ]
    assert [row.name for row in rows_from(tmp_path, *windows)] == [
        "sliding_window (window=16)",
        "sliding_window (window=32)",
    ]


def test_options_of_none_and_of_a_number_are_rows_in_this_order(tmp_path):
    records = [make_record("based", options={"conv_width": width}) for width in (4, None, 3)]
    assert [row.variant for row in rows_from(tmp_path, *records)] == [
        {"conv_width": None}, {"conv_width": 3}, {"conv_width": 4}
    ]  # fmt: skip


def test_one_model_for_each_test_makes_one_row(tmp_path):
    records = [
        make_record(
            "based",
            lr=lr,
            accuracy=a,
            segments=[{"label": f"{t // 16} in {t}", "seq_len": t, "accuracy": a}],
            task={"t": t},
        )
        for t, lr, a in ((64, 1e-3, 0.9), (64, 1e-2, 0.5), (128, 1e-3, 0.3), (128, 1e-2, 0.7))
    ]
    (row,) = rows_from(tmp_path, *records)
    assert row.segments == {(64, "4 in 64", None, None): 0.9, (128, "8 in 128", None, None): 0.7}
    assert row.accuracy == pytest.approx(0.8)
    assert make_columns([row])[-1].cells[0].startswith("0.001 / 0.01")


def test_a_row_that_lacks_a_test_is_left_out_and_named(tmp_path):
    def single(mixer, t):
        return make_record(mixer, segments=[{"label": f"4 in {t}", "seq_len": t, "accuracy": 0.5}], task={"t": t})

    folder = write_records(tmp_path, [single("attention", 64), single("attention", 128), single("hyena", 64)])
    assert [row.name for row in rows_of(folder)] == ["attention"]
    assert "Left out, for they lack tests: hyena." in " ".join(printed(folder).split())


def test_run_without_one_complete_row_is_refused(tmp_path):
    records = [
        make_record(mixer, segments=[{"label": f"4 in {t}", "seq_len": t, "accuracy": 0.5}], task={"t": t})
        for mixer, t in (("attention", 64), ("hyena", 128))
    ]
    with pytest.raises(ValueError, match="before any mixer had all 2 tests"):
        rows_from(tmp_path, *records)


def test_table_shows_every_number_of_a_row(tmp_path):
    folder = write_records(tmp_path, [make_record("attention"), make_record("based")])
    text = printed(folder)
    lines = text.splitlines()
    attention = next(line for line in lines if line.startswith(" attention"))
    assert attention.split() == ["attention", "99.7", "99.6", "99.6", "99.6", "128", "KiB", "300k", "910k", "0.699"]
    assert lines.index(attention) < next(i for i, line in enumerate(lines) if line.startswith(" based"))
    assert f"at {max(CONTEXTS)}" in text


def test_table_never_cuts_a_number(tmp_path):
    folder = quick_run(tmp_path)
    assert "…" not in printed(folder)  # a pipe gets the full width
    narrow = printed(folder, width=80, force_terminal=True, no_color=True)
    assert "…" not in narrow
    assert "16 in" not in narrow and "99.0 ±0.6" in narrow


def test_markdown_is_a_table_with_its_learning_rates(tmp_path):
    lines = markdown_table(quick_run(tmp_path)).splitlines()
    assert lines[0].startswith("| mixer | 4 in 64 | 8 in 128 | 16 in 128 | mean | state |")
    assert len({line.count("|") for line in lines[: 2 + len(MIXERS)]}) == 1
    assert lines[2].startswith("| attention | 99.2 | 99.0 | 98.8 | 99.0 ±0.6 | 128 KiB |")
    assert lines[2].endswith("| 0.01 (1 of 3) |")


def test_missing_throughput_is_a_dash(tmp_path):
    folder = write_records(tmp_path, [make_record("attention"), make_record("based", throughput=None)])
    based = next(line for line in markdown_table(folder).splitlines() if line.startswith("| based"))
    assert based.count("| - ") == 3
    assert write_report(folder)


def test_no_throughput_at_all_still_makes_a_report(tmp_path):
    folder = write_records(tmp_path, [make_record(mixer, throughput=None) for mixer in ("attention", "based")])
    assert len(costs(rows_of(folder))) == 1
    assert all(path.stat().st_size > 10_000 for path in write_report(folder))


def test_costs_are_state_and_the_speeds_that_were_measured(tmp_path):
    rows = rows_of(write_records(tmp_path, [make_record("attention"), make_record("based", throughput=None)]))
    state, train, decode = costs(rows)
    assert "bytes of state" in state.title and "trained a second" in train.title and "4,096" in decode.title
    assert [train.of(row) for row in rows] == [pytest.approx(3e5), None] and decode.of(rows[1]) is None


def test_overflowed_loss_and_zero_accuracy_are_drawn(tmp_path):
    diverged = make_record(
        "hyena",
        accuracy=0.0,
        segments=[{"label": f"{n} in {t}", "seq_len": t, "num_pairs": n, "accuracy": 0.0} for t, n in TESTS],
        loss_curve=[[20, 5.0], [40, None]],
    )
    assert write_report(write_records(tmp_path, [make_record("attention"), diverged]))


def test_the_baseline_is_alone_in_its_look(tmp_path):
    curves = make_curves(rows_of(quick_run(tmp_path)))
    looks = {curve.name: curve.look for curve in curves}
    assert len(set(looks.values())) == len(MIXERS)
    assert [curve.name for curve in curves if curve.baseline] == ["attention"]
    assert looks["attention"].marker not in {look.marker for name, look in looks.items() if name != "attention"}


def test_picture_has_no_overlapping_labels(tmp_path, monkeypatch):
    from subquad.benchmarks.report import _figure

    placed = []
    original = _figure._Panel._place

    def place(self, *arguments):
        box = original(self, *arguments)
        placed.append((self, box))
        return box

    monkeypatch.setattr(_figure._Panel, "_place", place)
    draw_frontier(rows_of(quick_run(tmp_path)), tmp_path / "frontier", "title")
    assert len(placed) == 3 * len(MIXERS)
    for index, (panel, box) in enumerate(placed):
        inside = panel.axes.get_window_extent()
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1
        for other_panel, other in placed[:index]:
            assert panel is not other_panel or _figure._overlap(box, other) == 0


def test_page_stands_on_its_own(tmp_path):
    *pictures, page = write_report(quick_run(tmp_path))
    names = [f"{name}.{kind}" for name in ("frontier", "sizes", "learning_rates") for kind in ("png", "svg")]
    assert [path.name for path in pictures] == names and page.name == "report.html"
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
    html = page.read_text()
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=", html)
    assert "Plotly.newPlot" in html and len(html) > 3_000_000  # plotly.js itself
    # three costs, two sizes, two curves, and learning rates; none offers to upload
    assert html.count('"modeBarButtonsToRemove": ["sendChartToCloud"]') == html.count("<figure ") == 8
    assert html.count("<figcaption") == 8 and "attention: 99.0 % at 128 KiB" in html
    for shown in ("hyena", "amx_tile", "0123456789abcdef", "quick", "mqar", "2.13.0", "Loss while learning"):
        assert shown in html


def test_models_of_several_widths_are_drawn_by_width(tmp_path):
    wide = [make_record(m, d_model=d) for m in ("attention", "hyena") for d in (64, 16, 128)]
    *pictures, page = write_report(write_records(tmp_path, wide))
    assert {"widths.png", "widths.svg"} <= {path.name for path in pictures}
    html = page.read_text()
    assert "Accuracy by width of the model" in html
    assert all(f"hyena, {pairs} in {length}" in html for length, pairs in TESTS)
    curve = make_curves(rows_of(tmp_path))[1]
    assert list(curve.by_width(next(iter(curve.rows[0].segments)))) == [16, 64, 128]


def test_models_of_several_depths_are_told_apart(tmp_path):
    deep = {"d_model": 64, "num_layers": 4, "num_parameters": 1}
    rows = rows_of(write_records(tmp_path, [make_record("attention"), make_record("attention", job="4", model=deep)]))
    assert [row.label for row in rows] == ["attention (layers=2)", "attention (layers=4)"]


def test_every_training_is_listed(tmp_path):
    runs = gather(read_runs(quick_run(tmp_path))).runs
    columns = {column.heading: column for column in trial_columns(runs)}
    assert len(columns["mixer"].cells) == len(runs) > len(MIXERS)
    assert columns["options"].cells[0] == "num_heads=2" and columns["each test"].cells[0].count("/") == 2


def test_latex_is_a_table_with_booktabs(tmp_path):
    lines = latex_table(quick_run(tmp_path)).splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrrrrrr}" and lines[-1] == r"\end{tabular}"
    body = [line for line in lines if line.endswith(r" \\")]
    assert len(body) == 1 + len(MIXERS) and {len(re.findall(r"(?<!\\)&", line)) for line in body} == {8}
    assert r"linear\_attention" in "".join(body) and r"99.0 $\pm$0.6" in body[1]
    assert not re.search(r"(?<!\\)[_%#]", "".join(body))


def test_a_mixer_looks_the_same_in_every_report(tmp_path):
    assert set(_style.MIXERS) == {*mixers.MIXERS, *mixers.HYBRIDS}
    (tmp_path / "few").mkdir()
    few = make_curves(rows_of(write_records(tmp_path / "few", [make_record(m) for m in ("attention", "hyena")])))
    everything = {curve.name: curve.look for curve in make_curves(rows_of(quick_run(tmp_path)))}
    assert few[1].look == everything["hyena"]


def test_page_escapes_what_it_shows(tmp_path):
    folder = write_records(tmp_path, [make_record("attention"), make_record("based", options={"x": "</td><b>$"})])
    *_, page = write_report(folder)
    assert "</td><b>$" not in page.read_text()


def test_report_comes_again_from_the_records_alone(tmp_path):
    folder = quick_run(tmp_path)
    written = write_report(folder)
    first = [path.read_bytes() for path in written[:-1]]
    for path in written:
        path.unlink()
    assert [path.read_bytes() for path in write_report(folder)[:-1]] == first


def test_report_does_not_import_torch(tmp_path):
    """Through a stand-in for the umbrella, which re-exports ops."""
    code = f"""
        import importlib.util, sys, types
        umbrella = types.ModuleType("subquad")
        umbrella.__path__ = list(importlib.util.find_spec("subquad").submodule_search_locations)
        sys.modules["subquad"] = umbrella
        from subquad.benchmarks.report import markdown_table, print_table, write_report
        print_table({str(tmp_path)!r}), markdown_table({str(tmp_path)!r}), write_report({str(tmp_path)!r})
        assert "torch" not in sys.modules, "torch was imported"
    """
    quick_run(tmp_path)
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)


def test_folder_without_records_is_refused(tmp_path):
    for call in (write_report, print_table, markdown_table):
        with pytest.raises(FileNotFoundError, match=r"holds no records\.jsonl"):
            call(tmp_path)


def test_empty_records_are_refused(tmp_path):
    write_records(tmp_path, [])
    with pytest.raises(ValueError, match="no finished run of kind 'recall' among its 0 records"):
        write_report(tmp_path)


def test_half_written_last_line_is_passed_over(tmp_path):
    folder = write_records(tmp_path, [make_record("attention"), make_record("based")])
    path = folder / "records.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-200])
    with pytest.warns(UserWarning, match="passed over"):
        assert [row.name for row in rows_of(folder)] == ["attention"]


def test_damaged_line_inside_is_refused(tmp_path):
    folder = write_records(tmp_path, [make_record("attention"), make_record("based")])
    path = folder / "records.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first[:100] + "\n" + second)
    with pytest.raises(ValueError, match="line 1 is not a record"):
        write_report(folder)


def test_records_of_another_kind_are_passed_over(tmp_path):
    folder = write_records(tmp_path, [make_record("attention"), {"kind": "throughput", "mixer": "based"}])
    assert [row.name for row in rows_of(folder)] == ["attention"]


def test_record_that_lacks_a_key_is_refused(tmp_path):
    record = make_record("attention")
    del record["state_bytes"]
    with pytest.raises(ValueError, match="lacks state_bytes"):
        rows_from(tmp_path, record)


def test_mixed_recipes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mixes 2 recipes.*based-frontier; quick.*folder of its own"):
        rows_from(tmp_path, make_record("attention"), make_record("based", recipe="based-frontier"))


def test_mixed_tasks_of_the_same_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match="mixes 2 tasks"):
        rows_from(tmp_path, make_record("attention"), make_record("based", task={"name": "mqar", "vocab_size": 8192}))


@pytest.mark.parametrize(
    "count, text", [(512, "512 B"), (16384, "16 KiB"), (39168, "38.2 KiB"), (131072, "128 KiB"), (3 << 20, "3 MiB")]
)
def test_bytes_are_readable(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize("count, text", [(0.25, "0.25"), (987, "987"), (12345, "12.3k"), (4.56e6, "4.56M")])
def test_counts_are_readable(count, text):
    assert format_count(count) == text


def test_ticks_are_few_and_round(tmp_path):
    rows = rows_of(quick_run(tmp_path))
    for cost in costs(rows):
        low, high = cost.range(rows)
        ticks = cost.ticks(rows)
        assert 2 <= len(ticks) <= 6
        assert all(low <= tick <= high for tick in ticks)
        assert all(json.loads(re.sub("[A-Za-z ]+$", "", cost.show(tick))) > 0 for tick in ticks)


def test_a_test_of_another_task_is_called_what_it_is(tmp_path):
    label = "Copying(num_tokens=8)"
    write_records(
        tmp_path,
        [
            make_record(mixer, segments=[{"label": name, "seq_len": 16, "accuracy": 0.5} for name in (label, "Dyck")])
            for mixer in ("attention", "based")
        ],
    )
    said = markdown_table(tmp_path)
    assert "| Copying (num_tokens=8) | Dyck | mean |" in said and "pairs in" not in said


def test_failures_are_told_until_they_are_made_good(tmp_path):
    failed = {"kind": "recall_failure", "job": "based-d64-lr0.01-seed0", "label": "based() d=64", "error": "E: no room"}
    write_records(tmp_path, [make_record("attention"), failed])
    assert "Failed: based() d=64 (E: no room)." in markdown_table(tmp_path)
    write_records(tmp_path, [make_record("attention"), failed, make_record("based")])
    assert "Failed" not in markdown_table(tmp_path)


def test_accuracy_by_the_number_of_training_examples(tmp_path):
    records = [
        make_record(
            mixer,
            segments=[{"label": f"Identity, {count} examples", "seq_len": 9, "accuracy": count / 1000}],
            task={"train": [{"task": "Identity", "num_examples": count}]},
        )
        for mixer in ("attention", "based")
        for count in (300, 1000)
    ]
    rows = rows_from(tmp_path, *records)
    assert rows[0].by_size("num_examples") == {300: pytest.approx(30), 1000: pytest.approx(100)}
    assert "Accuracy by number of training examples" in write_report(tmp_path)[-1].read_text()
