"""What the throughput benchmarks measure, and that both sides of each comparison compute the same thing."""

import json
import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from subquad.benchmarks import op_rows, op_throughput, peers, throughput
from subquad.benchmarks.model import TinyLM
from subquad.benchmarks.op_rows import COMPARISONS, SLOPE_GOALS, SUBQUADRATIC, Sizes, forward_backward
from subquad.benchmarks.op_throughput import Result, make_table, run_op_throughput, slope
from subquad.benchmarks.throughput import DECODE_STEPS, measure_model, run_throughput
from subquad.kernels.causal_attention import causal_attention
from subquad.kernels.delta_rule import delta_rule
from subquad.kernels.generalized_delta_rule import generalized_delta_rule
from subquad.kernels.linear_attention import linear_attention
from subquad.kernels.long_conv import long_conv
from subquad.kernels.selective_scan import selective_scan
from subquad.kernels.short_conv import short_conv
from subquad.mixers import build_layers

CPU = torch.device("cpu")
TINY = Sizes(t=64, scan_t=12, slope=(16, 32), memory=(16, 32, 64), short_t=8, short_batch=2)


@pytest.fixture
def model():
    return TinyLM(build_layers("attention", 16, 2, num_heads=2), 16, 32)


def test_model_measurement_has_every_number(model):
    found = measure_model(model, seq_len=16, batch=2, contexts=(8, 24), device=CPU, budget=0.1)
    assert set(found) == {"train_tokens_per_second", "prefill_tokens_per_second", "decode"}
    assert found["train_tokens_per_second"] > 0 and found["prefill_tokens_per_second"] > 0
    assert [point["context"] for point in found["decode"]] == [8, 24]
    assert all(point["ms_per_token"] > 0 for point in found["decode"])
    json.dumps(found)


def test_state_is_measured_from_its_tensors(model):
    """Two layers hold keys and values of width 16 in float32 for every token."""
    found = measure_model(model, seq_len=16, batch=2, contexts=(8, 24), device=CPU, budget=0.1)
    for point in found["decode"]:
        assert point["state_bytes"] == 2 * 2 * 16 * 4 * point["context"] == model.state_size(point["context"])


def test_measuring_leaves_the_model_as_it_was(model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for training in (True, False):
        model.train(training)
        measure_model(model, seq_len=16, batch=2, contexts=(8,), device=CPU, budget=0.0)
        assert model.training is training
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_measuring_leaves_the_random_stream_alone(model):
    state = torch.get_rng_state()
    measure_model(model, seq_len=16, batch=2, contexts=(8,), device=CPU, budget=0.0)
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_is_autocast(model):
    found = measure_model(model, seq_len=16, batch=2, contexts=(8,), device=CPU, dtype=torch.bfloat16, budget=0.0)
    assert found["decode"][0]["state_bytes"] == 2 * 2 * 16 * 2 * 8
    assert next(model.parameters()).dtype == torch.float32


def test_decoding_runs_without_the_matmul_lever(model, monkeypatch):
    asked = []
    original = throughput.matmul_lever
    monkeypatch.setattr(throughput, "matmul_lever", lambda on: asked.append(on) or original(on))
    measure_model(model, seq_len=16, batch=2, contexts=(8, 24), device=CPU, budget=0.0)
    assert asked == [False]  # once for all contexts


@pytest.mark.parametrize(
    "sizes, error",
    [
        (dict(contexts=()), "at least one length"),
        (dict(contexts=(0,)), "contexts must be at least 1, got 0"),
        (dict(seq_len=0), "seq_len must be at least 1, got 0"),
        (dict(batch=-1), "batch must be at least 1, got -1"),
    ],
)
def test_impossible_sizes_are_refused(model, sizes, error):
    with pytest.raises(ValueError, match=error):
        measure_model(model, **({"seq_len": 16, "batch": 2, "contexts": (8,)} | sizes), device=CPU)


def test_contexts_past_learned_positions_are_refused():
    model = TinyLM(build_layers("attention", 16, 1, num_heads=2), 16, 32, num_positions=64)
    measure_model(model, seq_len=16, batch=1, contexts=(63 - DECODE_STEPS,), device=CPU, budget=0.0)
    with pytest.raises(ValueError, match="num_positions=64, but decoding goes up to token 65"):
        measure_model(model, seq_len=16, batch=1, contexts=(64 - DECODE_STEPS,), device=CPU)


def test_mixers_are_measured_and_recorded(tmp_path, capsys):
    out = tmp_path / "new" / "throughput.jsonl"
    mixers = ("attention", "hyena", "hybrid")
    code = run_throughput(mixers=mixers, device="cpu", out=out, d_model=32, seq_len=16, batch=1, contexts=(8, 16))
    assert code == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["mixer"] for record in records] == list(mixers)
    for record in records:
        assert record["kind"] == "throughput"
        assert [point["context"] for point in record["throughput"]["decode"]] == [8, 16]
        assert {"matmul", "allocator"} == set(record["levers"])
        assert record["environment"]["versions"]["torch"] == torch.__version__
    assert all(mixer in capsys.readouterr().out for mixer in mixers[:1])


@pytest.mark.parametrize(
    "asked, error",
    [
        (dict(mixers=("atention",)), "unknown mixer atention; expected some of attention"),
        (dict(device="tpu"), "unknown device 'tpu'; expected auto, cpu or cuda"),
        (dict(mixers=("attention",), d_model=33), "d_model"),
        (dict(ops=True, only=("speeed",)), "knows no speeed; measures are speed, length, memory"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(tmp_path, asked, error):
    out = tmp_path / "new" / "throughput.jsonl"
    with pytest.raises(ValueError, match=error):
        run_throughput(**asked, out=out)
    assert not out.parent.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_missing_gpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match="PyTorch sees no GPU"):
        run_throughput(device="cuda", out=tmp_path / "x.jsonl")


def test_every_row_and_goal_is_there():
    beside_fla = [comparison for comparison in COMPARISONS if comparison.package]
    assert {op: goal for comparison in beside_fla for op, goal in comparison.goals.items()} == {
        "linear_attention/scalar": 3, "delta_rule": 3, "delta_rule/scalar": 3, "delta_rule/vector": 3,
        "generalized_delta_rule": 3,
    }  # fmt: skip
    rest = [comparison for comparison in COMPARISONS if comparison not in beside_fla]
    goals = {op: goal for comparison in rest for op, goal in comparison.goals.items()}
    assert goals == {
        "causal_attention": pytest.approx(0.952, abs=1e-3),
        "sliding_window": 4.5,
        "linear_attention": 18,
        "linear_attention/scalar": 13,
        "linear_attention/vector": 10,
        "delta_rule": 6.5,
        "delta_rule/scalar": 5.5,
        "polynomial_attention": 5.5,
        "selective_scan": 50,
        "long_conv": 1.6,
        "long_conv/short": 2.2,
        "short_conv": 4,
        "decode": 2,
    }
    assert {op: SLOPE_GOALS[op] for op in SUBQUADRATIC} == dict.fromkeys(SUBQUADRATIC, 1.15) | {"long_conv": 1.3}
    assert Sizes() == Sizes(8192, 2048, (4096, 32768), (2048, 8192, 32768), 64, 512)
    for comparison in COMPARISONS:
        assert set(comparison.make) == {comparison.peer, *comparison.goals}


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda comparison: "+".join(comparison.goals))
def test_every_comparison_runs_forward_and_backward(comparison):
    if not comparison.is_installed:
        pytest.skip(f"needs {comparison.package}")
    for name, make in comparison.make.items():
        found = make(TINY, CPU)()
        for x in found if isinstance(found, tuple) else (found,):
            assert torch.isfinite(x).all(), name


@pytest.mark.parametrize("peer, inputs, op, decay", [
    (peers.fla_scalar_decay, op_rows._fading_heads, linear_attention, "scalar"),
    (peers.fla_delta_rule, op_rows._delta_inputs, delta_rule, "none"),
    (peers.fla_gated_delta_rule, op_rows._delta_inputs, delta_rule, "scalar"),
    (peers.fla_kimi_delta, op_rows._delta_inputs, delta_rule, "vector"),
    (peers.fla_generalized_delta_rule, op_rows._generalized_delta_inputs, generalized_delta_rule, "vector"),
], ids=lambda x: getattr(x, "__name__", x))  # fmt: skip
def test_plain_chunks_of_fla_compute_the_same(peer, inputs, op, decay):
    pytest.importorskip("fla")
    given = inputs(64, CPU, decay)
    torch.testing.assert_close(peer(**given), op(**given)[0], atol=1e-4, rtol=1e-4)


def test_forward_backward_gives_the_gradient_of_every_input():
    run = forward_backward(lambda x, w: ((x * w).sum(-1, keepdim=True), None), x=torch.ones(2, 3), w=torch.ones(3))
    dx, dw = run()
    assert dx.shape == (2, 3) and dw.shape == (3,)
    assert torch.equal(run()[0], dx)  # the gradient of the output is fixed


def test_peers_compute_what_our_ops_compute():
    q, k, v = (torch.randn(2, 9, 3, 8) for _ in range(3))
    transposed = (x.transpose(1, 2) for x in (q, k, v))
    torch.testing.assert_close(peers.sdpa(*transposed).transpose(1, 2), causal_attention(q, k, v))

    x, pre_gate, post_gate = (torch.randn(2, 9, 6) for _ in range(3))
    filter, skip = torch.randn(6, 9), torch.randn(6)
    ours = long_conv(x, filter, skip, pre_gate=pre_gate, post_gate=post_gate)
    published = peers.fft_conv(x.mT, filter, skip, pre_gate.mT, post_gate.mT)
    torch.testing.assert_close(published.mT, ours, atol=1e-5, rtol=1e-5)
    in_model = peers.in_model(peers.fft_conv)(x=x, filter=filter, skip=skip, pre_gate=pre_gate, post_gate=post_gate)
    torch.testing.assert_close(in_model, ours, atol=1e-5, rtol=1e-5)

    weight, bias = torch.randn(6, 4), torch.randn(6)
    torch.testing.assert_close(peers.grouped_conv1d(x.mT, weight, bias).mT, short_conv(x, weight, bias)[0])

    x, dt, B, C = torch.randn(2, 9, 6), torch.rand(2, 9, 6), torch.randn(2, 9, 4), torch.randn(2, 9, 4)
    A, D = -torch.rand(6, 4), torch.randn(6)
    stepped = peers.scan_loop(x.mT, dt.mT, A, B.mT, C.mT, D)
    torch.testing.assert_close(stepped.mT, selective_scan(x, dt, A, B, C, D)[0])

    new, past = ([torch.randn(1, 3, t, 8) for _ in range(2)] for t in (1, 8))
    query = torch.randn(1, 3, 1, 8)
    everything = [torch.cat(pair, dim=2) for pair in zip(past, new, strict=True)]
    expected = F.scaled_dot_product_attention(query, *everything)
    torch.testing.assert_close(peers.decode_by_concatenation(query, *new, *past), expected)


def test_ops_are_measured_with_and_without_levers(tmp_path, capsys):
    out = tmp_path / "ops.jsonl"
    only = ("short_conv", "decode", "memory", "speed")
    results = run_op_throughput(device=CPU, out=out, environment={"seed": 0}, only=only, sizes=TINY)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == len(results)
    off = [(record["measure"], record["op"], record["peer"]) for record in records if not record["levers"]]
    assert off == [
        ("speed", "short_conv", "conv1d"),
        ("speed", "short_conv", "conv1d in a model"),
        ("speed", "decode", "cat"),
        ("memory", "short_conv", ""),
    ]
    for record in records:
        switched = any(lever["on"] for lever in record["switched"].values())
        assert switched is record["levers"]
        if record["measure"] == "speed":
            assert record["value"] == statistics.median(record["ratios"]) > 0
            assert record["points"] == {name: timing["median"] * 1e3 for name, timing in record["timings"].items()}
            assert record["met"] is (record["value"] >= record["goal"])
            assert record["timings"]["ours"]["count"] > 0
    shown = capsys.readouterr().out
    assert "short_conv" in shown and f"{len(results)} goals met" in shown.replace("\n", " ")


def test_length_is_measured_at_both_ends(tmp_path):
    results = run_op_throughput(
        device=CPU, out=tmp_path / "ops.jsonl", environment={}, only=("length", "short_conv"), sizes=TINY
    )
    for result in results:
        assert result.measure == "length" and list(result.points) == ["16", "32"]
        assert result.value == pytest.approx(math.log2(result.points["32"] / result.points["16"]))


def test_peak_memory_of_our_ops_grows_linearly():
    """Far from t squared already at short lengths, for every op that claims it."""
    sizes = Sizes(memory=(1024, 2048))
    for op in ("linear_attention", "polynomial_attention", "short_conv", "long_conv"):
        result = op_throughput.measure_memory(op, sizes, CPU)
        assert result.value < 1.1, f"{op}: {result.points}"


def test_slope_is_the_exponent_of_growth():
    assert slope({"10": 3.0, "50": 1.0, "1000": 3.0 * 100**1.5}) == pytest.approx(1.5)


@pytest.mark.parametrize("measure, value, met", [("speed", 2.0, True), ("speed", 0.5, False), ("length", 2.0, False)])
def test_goals_are_lower_bounds_of_speed_and_upper_bounds_of_growth(measure, value, met):
    result = Result(measure, "short_conv", "conv1d", False, value, 1.0, {"ours": 1.0, "peer": value}, {})
    assert result.met is met
    assert make_table(measure, [result]).row_count == 1
