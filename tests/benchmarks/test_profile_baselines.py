"""The baselines: what they compute is what our ops mean, and what they cannot compute they refuse."""

import importlib
import inspect
import sys
from types import ModuleType

import pytest
import torch

from subquad.benchmarks.profile.baselines import BASED, BASELINES, REBASED
from subquad.kernels import OPS

HEADS = dict(b=2, t=12, h=2, k=8, v=8)


def inputs_of(op: str, **sizes) -> dict:
    room = importlib.import_module(f"subquad.kernels.{op}._inputs")
    sizes = sizes | ({"state": False} if "state" in inspect.signature(room.make_inputs).parameters else {}) | sizes
    made = room.make_inputs(torch.Generator().manual_seed(0), **sizes)
    return {name: x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in made.items()}


def baseline(op: str, name: str):
    return next(one for one in BASELINES[op] if one.name == name)


def reference(op: str, inputs: dict) -> torch.Tensor:
    result = getattr(importlib.import_module(f"subquad.kernels.{op}"), op)(**inputs, backend="reference")
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("op, name, sizes", [
    ("causal_attention", "SDPA math", dict(b=2, t=12, h=4, g=2, k=8)),
    ("causal_attention", "SDPA flash", dict(b=2, t=12, h=2, k=8, scale=0.3)),
    ("causal_attention", "SDPA math", dict(b=2, t=1, s=9, h=2, k=8)),
    ("short_conv", "grouped conv1d", dict(b=2, t=12, d=6, w=4, activation="silu")),
    ("short_conv", "grouped conv1d", dict(b=2, t=12, d=6, w=3, bias=False)),
    ("long_conv", "torch.fft", dict(b=2, t=12, d=6, l=12)),
])  # fmt: skip
def test_it_computes_what_the_op_means(op, name, sizes):
    inputs, one = inputs_of(op, **sizes), baseline(op, name)
    assert one.refusal(inputs) == "" and one.is_installed
    run, leaves = one.prepare(inputs, needs_grad=True)
    y = run()
    torch.testing.assert_close(y, reference(op, inputs), rtol=1e-4, atol=1e-5)
    grads = torch.autograd.grad(y, leaves, torch.randn_like(y))
    assert len(leaves) == sum(isinstance(x, torch.Tensor) for x in inputs.values())
    assert all(dx.shape == x.shape for dx, x in zip(grads, leaves, strict=True))


def test_our_own_inputs_stay_as_they_are():
    inputs = inputs_of("causal_attention", b=1, t=4, h=1, k=8)
    run, leaves = baseline("causal_attention", "SDPA math").prepare(inputs, needs_grad=True)
    run().sum().backward()
    assert leaves[0].grad is not None and not any(inputs[name].requires_grad for name in "qkv")
    assert baseline("causal_attention", "SDPA math").prepare(inputs, needs_grad=False)[1] == []


@pytest.mark.parametrize("op, sizes, refusals", [
    ("causal_attention", dict(b=1, t=9, h=1, k=8, window=3),
     {"SDPA math": "has no window", "flash-attn": "", "fla parallel_attn": "has no window"}),
    ("causal_attention", dict(b=1, t=9, h=1, k=8, sinks=True),
     {"SDPA math": "has no sinks", "flash-attn": "has no sinks"}),
    ("causal_attention", dict(b=1, t=5, s=9, h=1, k=8),
     {"SDPA math": "aligns queries with the first keys", "flash-attn": ""}),
    ("causal_attention", dict(b=1, t=1, s=9, h=1, k=8),
     {"SDPA math": "", "fla parallel_attn": "aligns queries with the first keys"}),
    ("causal_attention", dict(b=1, t=9, h=1, k=8, cu_seqlens=(0, 4, 9)), {"flash-attn": "has no cu_seqlens"}),
    ("linear_attention", HEADS, {"fla chunk_linear_attn": "", "fla simple_gla": "is the form with a decay a head",
                                 "fla fused_recurrent_linear_attn": "is for one token after others"}),
    ("linear_attention", HEADS | dict(decay="head"),
     {"fla chunk_linear_attn": "is the form without a decay", "fla simple_gla": "",
      "fla gla": "is the form with a decay a channel"}),
    ("linear_attention", HEADS | dict(decay="channel"), {"fla gla": ""}),
    ("linear_attention", HEADS | dict(decay="head", normalize=True), {"fla simple_gla": "has no normalize"}),
    ("linear_attention", HEADS | dict(normalize=True), {"fla chunk_linear_attn": ""}),
    ("linear_attention", HEADS | dict(normalize=True, state=True),
     {"fla chunk_linear_attn": "keeps the sums of weights apart from the state"}),
    ("linear_attention", HEADS | dict(t=1, state=True),
     {"fla chunk_linear_attn": "is for many tokens", "fla fused_recurrent_linear_attn": ""}),
    ("delta_rule", HEADS, {"fla delta_rule": "", "fla gated_delta_rule": "is the form with a decay a head"}),
    ("delta_rule", HEADS | dict(decay="channel"), {"fla delta_rule": "is the form without a decay", "fla kda": ""}),
    ("selective_scan", dict(b=1, t=9, d=4, m=3, state=True), {"mamba-ssm": "has no state"}),
    ("linear_recurrence", dict(b=1, t=9, d=4, cu_seqlens=(0, 4, 9)), {"fla hgrn": "has no cu_seqlens"}),
    ("polynomial_attention", HEADS,
     {"fla parallel_based": "", "fla parallel_rebased": f"has the coefficients {REBASED}, not {BASED}"}),
    ("polynomial_attention", HEADS | dict(coefficients=REBASED), {"fla parallel_rebased": ""}),
    ("polynomial_attention", HEADS | dict(state=True), {"fla fused_chunk_based": "has no state"}),
    ("short_conv", dict(b=1, t=9, d=4, w=3, state=True),
     {"causal-conv1d": "", "grouped conv1d": "has no state", "fla causal_conv1d": "has no state"}),
    ("long_conv", dict(b=1, t=9, d=4, l=9, skip=False), {"torch.fft": "is the form with skip"}),
    ("long_conv", dict(b=1, t=9, d=4, l=19), {"torch.fft": "transforms at most 2t taps, not 19"}),
])  # fmt: skip
def test_what_it_cannot_compute_it_refuses(op, sizes, refusals):
    inputs = inputs_of(op, **sizes)
    assert {name: baseline(op, name).refusal(inputs) for name in refusals} == refusals


# Published signatures, as their packages had them: flash-attn 2.8.3, causal-conv1d 1.7.0, flash-linear-attention 0.6.0.
PUBLISHED = {
    "flash_attn": {"flash_attn_func": "q k v dropout_p softmax_scale causal window_size softcap alibi_slopes "
                   "deterministic return_attn_probs"},
    "causal_conv1d": {
        "causal_conv1d_fn": "x weight bias seq_idx initial_states return_final_states final_states_out activation",
        "causal_conv1d_update": "x conv_state weight bias activation cache_seqlens conv_state_indices",
    },
    "fla.ops.attn": {"parallel_attn": "q k v g scale window_size cu_seqlens chunk_indices sink_bias"},
    "fla.ops.linear_attn": {
        "chunk_linear_attn": "q k v scale initial_state output_final_state normalize cu_seqlens",
        "fused_chunk_linear_attn": "q k v scale initial_state output_final_state normalize cu_seqlens",
        "fused_recurrent_linear_attn": "q k v scale initial_state output_final_state reverse normalize cu_seqlens",
    },
    "fla.ops.simple_gla": {
        "chunk_simple_gla": "q k v g g_gamma scale initial_state output_final_state state_v_first cu_seqlens",
        "fused_recurrent_simple_gla": "q k v g g_gamma scale initial_state output_final_state reverse state_v_first",
    },
    "fla.ops.gla": {
        "chunk_gla": "q k v g scale initial_state output_final_state state_v_first cu_seqlens cu_seqlens_cpu",
        "fused_recurrent_gla": "q k v gk gv scale initial_state output_final_state reverse state_v_first cu_seqlens",
    },
    "fla.ops.delta_rule": {
        "chunk_delta_rule": "q k v beta scale initial_state output_final_state use_qk_l2norm_in_kernel cu_seqlens",
        "fused_recurrent_delta_rule": "q k v beta scale initial_state output_final_state use_qk_l2norm_in_kernel",
    },
    "fla.ops.gated_delta_rule": dict.fromkeys(
        ("chunk_gated_delta_rule", "fused_recurrent_gated_delta_rule"),
        "q k v g beta scale initial_state output_final_state use_qk_l2norm_in_kernel",
    ),
    "fla.ops.kda": dict.fromkeys(
        ("chunk_kda", "fused_recurrent_kda"), "q k v g beta scale initial_state output_final_state"
    ),
    "fla.ops.generalized_delta_rule.dplr": dict.fromkeys(
        ("chunk_dplr_delta_rule", "fused_recurrent_dplr_delta_rule"),
        "q k v a b gk scale initial_state output_final_state",
    ),
    "fla.ops.hgrn": {
        "chunk_hgrn": "x g initial_state output_final_state",
        "fused_recurrent_hgrn": "x g initial_state output_final_state cu_seqlens",
    },
    "mamba_ssm.ops.selective_scan_interface": {
        "selective_scan_fn": "u delta A B C D z delta_bias delta_softplus return_last_state"
    },
    "fla.ops.based": dict.fromkeys(("parallel_based", "fused_chunk_based"), "q k v scale use_norm"),
    "fla.ops.rebased": {"parallel_rebased": "q k v eps use_scale use_normalize return_both"},
    "fla.modules.causal_conv1d": {
        "causal_conv1d": "x weight bias residual initial_state output_final_state activation backend cu_seqlens"
    },
}  # fmt: skip
GIVE_A_PAIR = (  # (y, state)
    "linear_attn",
    "simple_gla",
    "gla",
    "delta_rule",
    "gated_delta_rule",
    "kda",
    "dplr",
    "hgrn",
    "causal_conv1d",
)


def publish(monkeypatch, calls: list) -> None:
    """Modules of those names whose functions bind their arguments as the published ones do and give zeros."""
    for module_name, functions in PUBLISHED.items():
        parts = module_name.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[:length])
            if name not in sys.modules or not getattr(sys.modules[name], "is_fake", False):
                module = ModuleType(name)
                module.is_fake = True
                monkeypatch.setitem(sys.modules, name, module)
                if length > 1:
                    monkeypatch.setattr(
                        sys.modules[".".join(parts[: length - 1])], parts[length - 1], module, raising=False
                    )
        for function, names in functions.items():
            monkeypatch.setattr(
                sys.modules[module_name], function, published(module_name, function, names, calls), raising=False
            )


def published(module_name: str, function: str, names: str, calls: list):
    kinds = inspect.Parameter
    signature = inspect.Signature([kinds(name, kinds.POSITIONAL_OR_KEYWORD, default=None) for name in names.split()])

    def run(*arguments, **options):
        bound = signature.bind(*arguments, **options).arguments
        calls.append((function, bound))
        y = next(bound[name] for name in ("v", "x", "u") if name in bound)
        return (y, None) if module_name.startswith("fla") and module_name.split(".")[-1] in GIVE_A_PAIR else y

    return run


@pytest.mark.parametrize("op, name, sizes, function, expected", [
    ("causal_attention", "flash-attn", dict(b=1, t=9, h=1, k=8, window=3, softcap=2.0), "flash_attn_func",
     dict(causal=True, window_size=(2, 0), softcap=2.0)),
    ("causal_attention", "flash-attn", dict(b=1, t=9, h=1, k=8), "flash_attn_func",
     dict(causal=True, window_size=(-1, -1), softcap=0.0)),
    ("causal_attention", "fla parallel_attn", dict(b=1, t=9, h=1, k=8, scale=0.5), "parallel_attn", dict(scale=0.5)),
    ("linear_attention", "fla chunk_linear_attn", HEADS, "chunk_linear_attn", dict(normalize=False)),
    ("linear_attention", "fla fused_chunk_linear_attn", HEADS, "fused_chunk_linear_attn",
     dict(output_final_state=True)),
    ("linear_attention", "fla fused_recurrent_linear_attn", HEADS | dict(t=1), "fused_recurrent_linear_attn", {}),
    ("linear_attention", "fla simple_gla", HEADS | dict(decay="head"), "chunk_simple_gla", dict(scale=None)),
    ("linear_attention", "fla simple_gla", HEADS | dict(decay="head", t=1), "fused_recurrent_simple_gla", {}),
    ("linear_attention", "fla gla", HEADS | dict(decay="channel"), "chunk_gla", {}),
    ("linear_attention", "fla gla", HEADS | dict(decay="channel", t=1), "fused_recurrent_gla", {}),
    ("delta_rule", "fla delta_rule", HEADS, "chunk_delta_rule", dict(scale=None)),
    ("delta_rule", "fla delta_rule", HEADS | dict(t=1), "fused_recurrent_delta_rule", {}),
    ("delta_rule", "fla gated_delta_rule", HEADS | dict(decay="head"), "chunk_gated_delta_rule", {}),
    ("delta_rule", "fla gated_delta_rule", HEADS | dict(decay="head", t=1), "fused_recurrent_gated_delta_rule", {}),
    ("delta_rule", "fla kda", HEADS | dict(decay="channel"), "chunk_kda", {}),
    ("delta_rule", "fla kda", HEADS | dict(decay="channel", t=1), "fused_recurrent_kda", {}),
    ("generalized_delta_rule", "fla dplr_delta_rule", HEADS, "chunk_dplr_delta_rule", {}),
    ("generalized_delta_rule", "fla dplr_delta_rule", HEADS | dict(t=1), "fused_recurrent_dplr_delta_rule", {}),
    ("selective_scan", "mamba-ssm", dict(b=2, t=9, d=4, m=3, state=False), "selective_scan_fn", {}),
    ("linear_recurrence", "fla hgrn", dict(b=2, t=9, d=4, state=False), "chunk_hgrn", {}),
    ("linear_recurrence", "fla hgrn", dict(b=2, t=9, d=4, state=True), "fused_recurrent_hgrn", {}),
    ("polynomial_attention", "fla parallel_based", HEADS, "parallel_based", dict(use_norm=True)),
    ("polynomial_attention", "fla fused_chunk_based", HEADS, "fused_chunk_based", dict(use_norm=True)),
    ("polynomial_attention", "fla parallel_rebased", HEADS | dict(coefficients=REBASED), "parallel_rebased",
     dict(use_normalize=True)),
    ("short_conv", "causal-conv1d", dict(b=2, t=9, d=4, w=3, activation="silu"), "causal_conv1d_fn",
     dict(activation="silu", initial_states=None)),
    ("short_conv", "causal-conv1d", dict(b=2, t=1, d=4, w=3, state=True), "causal_conv1d_update", {}),
    ("short_conv", "fla causal_conv1d", dict(b=2, t=9, d=4, w=3), "causal_conv1d", dict(output_final_state=True)),
])  # fmt: skip
def test_packages_are_called_as_they_were_published(op, name, sizes, function, expected, monkeypatch):
    calls = []
    publish(monkeypatch, calls)
    inputs = inputs_of(op, **sizes)
    y = baseline(op, name).prepare(inputs, needs_grad=False)[0]()
    [(called, bound)] = calls
    assert called == function and bound | expected == bound
    assert y.shape[:2] == reference(op, inputs).shape[:2]
    for gate in ("g", "gk"):
        if "log_decay" in inputs and gate in bound:
            assert bound[gate].shape == inputs["log_decay"].shape


def test_the_state_of_causal_conv1d_lies_channels_first(monkeypatch):
    calls = []
    publish(monkeypatch, calls)
    inputs = inputs_of("short_conv", b=2, t=9, d=4, w=3, state=True)
    baseline("short_conv", "causal-conv1d").prepare(inputs, needs_grad=True)[0]()
    assert calls[0][1]["initial_states"].shape == (2, 4, 2) and calls[0][1]["x"].stride(1) == 1


def test_every_op_has_baselines_and_every_package_says_how_to_get_it():
    assert set(BASELINES) == set(OPS)
    assert all(bool(one.package) == one.install.startswith("pip install") for row in BASELINES.values() for one in row)
