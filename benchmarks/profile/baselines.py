"""The published forms that compute what our ops compute, called with their inputs: what a measured profile is beside.

A form gets its inputs in its own layout before anything is timed, so no copy of ours counts against it; what it copies
itself does. What it gives is turned back to our layout as a view.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..peers import fft_conv, grouped_conv1d

Inputs = dict[str, object]  # arguments of the op by name, absent ones left out or None
BASED, REBASED = (1.0, 1.0, 0.5), (0.0, 0.0, 1.0)
FLA = "pip install flash-linear-attention"


@dataclass(frozen=True)
class Baseline:
    """One published form.

    name: as the table calls it.
    load: imports it and gives a function that takes the op's inputs by our names and returns y in our layout.
    refusal: for given inputs why it cannot compute the same, "" if it can.
    lay_out: gives the inputs as this form wants them; as they are by default.
    package: what must be installed, "" if PyTorch is enough; `install` says how.
    """

    name: str
    load: Callable[[], Callable[..., Tensor]]
    refusal: Callable[[Inputs], str]
    lay_out: Callable[[Inputs], Inputs] = dict
    package: str = ""
    install: str = ""

    @property
    def is_installed(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None

    def prepare(self, inputs: Inputs, needs_grad: bool) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """(the call, what gets a gradient), with inputs of its own in its layout."""
        run = self.load()
        given = {name: x.detach() if isinstance(x, Tensor) else x for name, x in inputs.items() if x is not None}
        own = self.lay_out(given)
        leaves = [x for x in own.values() if needs_grad and isinstance(x, Tensor) and x.is_floating_point()]
        for x in leaves:
            x.requires_grad_()
        return lambda: run(**own), leaves


def baselines_of(op: str, inputs: Inputs) -> list[tuple[Baseline, str]]:
    """(baseline, why it is not comparable) for all that an op has."""
    return [(baseline, baseline.refusal(inputs)) for baseline in BASELINES[op]]


def _refuse(**unknown: object) -> Callable[[Inputs], str]:
    """Of inputs that have another value than the one that stands for absence."""

    def refusal(inputs: Inputs) -> str:
        for name, absent in unknown.items():
            value = inputs.get(name, absent)
            if value is not None and (absent is None or value != absent):
                return f"has no {name}"
        return ""

    return refusal


def _all_of(*refusals: Callable[[Inputs], str]) -> Callable[[Inputs], str]:
    return lambda inputs: next(filter(None, (refusal(inputs) for refusal in refusals)), "")


# Attention. SDPA's own layout is (b, h, t, k).


def _heads_first(inputs: Inputs) -> Inputs:
    return inputs | {name: inputs[name].transpose(1, 2).contiguous() for name in ("q", "k", "v")}


def _sdpa(backend: SDPBackend) -> Callable[[], Callable[..., Tensor]]:
    def run(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        grouped, causal = q.shape[1] != k.shape[1], q.shape[2] > 1  # a single query sees every key
        with sdpa_kernel(backend):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)
        return y.transpose(1, 2)

    return lambda: run


def _flash_attn() -> Callable[..., Tensor]:
    from flash_attn import flash_attn_func

    def run(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, window=None, softcap=None) -> Tensor:
        past = (-1, -1) if window is None else (window - 1, 0)
        return flash_attn_func(q, k, v, softmax_scale=scale, causal=True, window_size=past, softcap=softcap or 0.0)

    return run


def _fla_attention() -> Callable[..., Tensor]:
    from fla.ops.attn import parallel_attn

    def run(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        return parallel_attn(q, k, v, scale=scale)

    return run


def _unequal_times(inputs: Inputs) -> str:
    t, s = inputs["q"].shape[1], inputs["k"].shape[1]
    return "aligns queries with the first keys" if t != s else ""


def _unequal_times_of_many(inputs: Inputs) -> str:
    return "" if inputs["q"].shape[1] == 1 else _unequal_times(inputs)


# The linear family: fla has our layout, (b, t, h, k).


def _linear(form: str) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from fla.ops import linear_attn

        function = getattr(linear_attn, form)

        def run(q: Tensor, k: Tensor, v: Tensor, scale=None, normalize=False, state=None) -> Tensor:
            return function(
                q, k, v, scale=scale, initial_state=state, output_final_state=True, normalize=normalize
            )[0]  # fmt: skip

        return run

    return load


def _simple_gla() -> Callable[..., Tensor]:
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    def run(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale=None, normalize=False, state=None) -> Tensor:
        function = fused_recurrent_simple_gla if q.shape[1] == 1 else chunk_simple_gla
        return function(q, k, v, g=log_decay, scale=scale, initial_state=state, output_final_state=True)[0]

    return run


def _gla() -> Callable[..., Tensor]:
    from fla.ops.gla import chunk_gla, fused_recurrent_gla

    def run(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale=None, normalize=False, state=None) -> Tensor:
        states = {"initial_state": state, "output_final_state": True}
        if q.shape[1] == 1:
            return fused_recurrent_gla(q, k, v, gk=log_decay, scale=scale, **states)[0]
        return chunk_gla(q, k, v, log_decay, scale=scale, **states)[0]

    return run


def _delta_rule() -> Callable[..., Tensor]:
    from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule

    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, scale=None, state=None) -> Tensor:
        function = fused_recurrent_delta_rule if q.shape[1] == 1 else chunk_delta_rule
        return function(q, k, v, beta.to(q.dtype), scale=scale, initial_state=state, output_final_state=True)[0]

    return run


def _gated_delta_rule() -> Callable[..., Tensor]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, scale=None, state=None) -> Tensor:
        function = fused_recurrent_gated_delta_rule if q.shape[1] == 1 else chunk_gated_delta_rule
        states = {"initial_state": state, "output_final_state": True}
        return function(q, k, v, g=log_decay, beta=beta, scale=scale, **states)[0]

    return run


def _kimi_delta() -> Callable[..., Tensor]:
    from fla.ops.kda import chunk_kda, fused_recurrent_kda

    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, scale=None, state=None) -> Tensor:
        function = fused_recurrent_kda if q.shape[1] == 1 else chunk_kda
        states = {"initial_state": state, "output_final_state": True}
        return function(q, k, v, g=log_decay, beta=beta, scale=scale, **states)[0]

    return run


def _dplr() -> Callable[..., Tensor]:
    from fla.ops.generalized_delta_rule.dplr import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule

    def run(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_decay: Tensor, scale=None, state=None) -> Tensor:
        function = fused_recurrent_dplr_delta_rule if q.shape[1] == 1 else chunk_dplr_delta_rule
        states = {"initial_state": state, "output_final_state": True}
        return function(q, k, v, a, b, log_decay, scale=scale, **states)[0]

    return run


def _many_tokens(inputs: Inputs) -> str:
    return "is for many tokens" if inputs["q"].shape[1] == 1 else ""


def _one_token(inputs: Inputs) -> str:
    return "" if inputs["q"].shape[1] == 1 else "is for one token after others"


def _decay_of(ndim: int | None) -> Callable[[Inputs], str]:
    """Refuses any other kind of decay: None, or the dimensions of log_decay."""

    def refusal(inputs: Inputs) -> str:
        found = inputs.get("log_decay")
        kinds = {None: "without a decay", 3: "with a decay a head", 4: "with a decay a channel"}
        return "" if (None if found is None else found.ndim) == ndim else f"is the form {kinds[ndim]}"

    return refusal


def _normalized_from_a_state(inputs: Inputs) -> str:
    joined = inputs.get("normalize") and inputs.get("state") is not None
    return "keeps the sums of weights apart from the state" if joined else ""


def _based(form: str) -> Callable[[], Callable[..., Tensor]]:
    def load() -> Callable[..., Tensor]:
        from fla.ops import based

        function = getattr(based, form)

        def run(q: Tensor, k: Tensor, v: Tensor, coefficients=BASED, scale=None, normalize=True) -> Tensor:
            return function(q, k, v, scale=scale, use_norm=normalize)

        return run

    return load


def _rebased() -> Callable[..., Tensor]:
    from fla.ops.rebased import parallel_rebased

    def run(q: Tensor, k: Tensor, v: Tensor, coefficients=REBASED, scale=None, normalize=True) -> Tensor:
        return parallel_rebased(q, k, v, use_normalize=normalize)

    return run


def _polynomial_of(coefficients: tuple[float, ...]) -> Callable[[Inputs], str]:
    def refusal(inputs: Inputs) -> str:
        found = tuple(inputs.get("coefficients", BASED))
        return "" if found == coefficients else f"has the coefficients {coefficients}, not {found}"

    return refusal


# Recurrences of channels.


def _hgrn() -> Callable[..., Tensor]:
    from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn

    def run(x: Tensor, log_decay: Tensor, state=None) -> Tensor:
        if state is not None or x.shape[1] == 1:
            return fused_recurrent_hgrn(x, log_decay, initial_state=state, output_final_state=True)[0]
        return chunk_hgrn(x, log_decay, output_final_state=True)[0]

    return run


def _mamba() -> Callable[..., Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D=None) -> Tensor:
        return selective_scan_fn(x, dt, A, B, C, D).transpose(1, 2)

    return run


def _scan_channels_first(inputs: Inputs) -> Inputs:
    return {name: x.transpose(1, 2).contiguous() if name in ("x", "dt", "B", "C") else x for name, x in inputs.items()}


# Convolutions. causal-conv1d takes (b, d, t) of any strides, so a view of our (b, t, d); PyTorch wants it contiguous.


def _causal_conv1d() -> Callable[..., Tensor]:
    from causal_conv1d import causal_conv1d_fn, causal_conv1d_update

    def run(x: Tensor, weight: Tensor, bias=None, activation=None, state=None) -> Tensor:
        if state is not None and x.shape[1] == 1:
            return causal_conv1d_update(x[:, 0], state, weight, bias, activation)[:, None]
        y = causal_conv1d_fn(x.transpose(1, 2), weight, bias, initial_states=state, activation=activation)
        return y.transpose(1, 2)

    return run


def _fla_conv() -> Callable[..., Tensor]:
    from fla.modules.causal_conv1d import causal_conv1d

    def run(x: Tensor, weight: Tensor, bias=None, activation=None) -> Tensor:
        return causal_conv1d(x, weight, bias, output_final_state=True, activation=activation)[0]

    return run


def _grouped_conv1d() -> Callable[..., Tensor]:
    def run(x: Tensor, weight: Tensor, bias=None, activation=None) -> Tensor:
        y = grouped_conv1d(x, weight, bias)
        return (F.silu(y) if activation == "silu" else y).transpose(1, 2)

    return run


def _fft_conv() -> Callable[..., Tensor]:
    """In float32 between inputs and outputs of the dtype, as H3 calls it: cuFFT has no bfloat16."""

    def run(x: Tensor, filter: Tensor, skip: Tensor, pre_gate: Tensor, post_gate: Tensor) -> Tensor:
        wide = (x.float() for x in (x, filter, skip, pre_gate, post_gate))
        return fft_conv(*wide).to(x.dtype).transpose(1, 2)

    return run


def _channels_first(inputs: Inputs) -> Inputs:
    return {
        name: x.transpose(1, 2).contiguous() if name in ("x", "pre_gate", "post_gate") else x
        for name, x in inputs.items()
    }


def _state_channels_first(inputs: Inputs) -> Inputs:
    """causal-conv1d wants its state as (b, d, w - 1), in the dtype of x and with channels side by side."""
    state = inputs.get("state")
    return inputs if state is None else inputs | {"state": state.to(inputs["x"].dtype).clone().transpose(1, 2)}


def _without_a_part(inputs: Inputs) -> str:
    missing = [name for name in ("skip", "pre_gate", "post_gate") if inputs.get(name) is None]
    return f"is the form with {', '.join(missing)}" if missing else ""


def _too_long_a_filter(inputs: Inputs) -> str:
    t, taps = inputs["x"].shape[1], inputs["filter"].shape[1]
    return f"transforms at most 2t taps, not {taps}" if taps > 2 * t else ""


_FROM_ZERO = _refuse(state=None, cu_seqlens=None)
_PLAIN_ATTENTION = _refuse(window=None, softcap=None, sinks=None, starts=None, cu_seqlens=None)
_UNDECAYED = _all_of(_refuse(cu_seqlens=None), _decay_of(None), _normalized_from_a_state)
_DECAYED = _refuse(cu_seqlens=None, normalize=False)


def _sdpa_baseline(name: str, backend: SDPBackend) -> Baseline:
    return Baseline(
        f"SDPA {name}", _sdpa(backend), _all_of(_PLAIN_ATTENTION, _unequal_times_of_many), lay_out=_heads_first
    )


def _fla(name: str, load: Callable, *refusals: Callable[[Inputs], str]) -> Baseline:
    return Baseline(f"fla {name}", load, _all_of(*refusals), package="fla", install=FLA)


BASELINES: dict[str, tuple[Baseline, ...]] = {
    "causal_attention": (
        _sdpa_baseline("flash", SDPBackend.FLASH_ATTENTION),
        _sdpa_baseline("efficient", SDPBackend.EFFICIENT_ATTENTION),
        _sdpa_baseline("cudnn", SDPBackend.CUDNN_ATTENTION),
        _sdpa_baseline("math", SDPBackend.MATH),
        Baseline(
            "flash-attn", _flash_attn, _refuse(sinks=None, starts=None, cu_seqlens=None),
            package="flash_attn", install="pip install --no-build-isolation flash-attn",
        ),
        _fla("parallel_attn", _fla_attention, _PLAIN_ATTENTION, _unequal_times),
    ),
    "linear_attention": (
        _fla("chunk_linear_attn", _linear("chunk_linear_attn"), _UNDECAYED, _many_tokens),
        _fla("fused_chunk_linear_attn", _linear("fused_chunk_linear_attn"), _UNDECAYED, _many_tokens),
        _fla("fused_recurrent_linear_attn", _linear("fused_recurrent_linear_attn"), _UNDECAYED, _one_token),
        _fla("simple_gla", _simple_gla, _DECAYED, _decay_of(3)),
        _fla("gla", _gla, _DECAYED, _decay_of(4)),
    ),
    "polynomial_attention": (
        _fla("parallel_based", _based("parallel_based"), _FROM_ZERO, _polynomial_of(BASED)),
        _fla("fused_chunk_based", _based("fused_chunk_based"), _FROM_ZERO, _polynomial_of(BASED)),
        _fla("parallel_rebased", _rebased, _FROM_ZERO, _refuse(scale=None), _polynomial_of(REBASED)),
    ),
    "delta_rule": (
        _fla("delta_rule", _delta_rule, _refuse(cu_seqlens=None), _decay_of(None)),
        _fla("gated_delta_rule", _gated_delta_rule, _refuse(cu_seqlens=None), _decay_of(3)),
        _fla("kda", _kimi_delta, _refuse(cu_seqlens=None), _decay_of(4)),
    ),
    "generalized_delta_rule": (_fla("dplr_delta_rule", _dplr, _refuse(cu_seqlens=None)),),
    "selective_scan": (
        Baseline(
            "mamba-ssm", _mamba, _FROM_ZERO, lay_out=_scan_channels_first,
            package="mamba_ssm", install="pip install --no-build-isolation mamba-ssm",
        ),
    ),
    "linear_recurrence": (_fla("hgrn", _hgrn, _refuse(cu_seqlens=None)),),
    "short_conv": (
        Baseline(
            "causal-conv1d", _causal_conv1d, _refuse(cu_seqlens=None), lay_out=_state_channels_first,
            package="causal_conv1d", install="pip install --no-build-isolation causal-conv1d",
        ),
        _fla("causal_conv1d", _fla_conv, _FROM_ZERO),
        Baseline("grouped conv1d", _grouped_conv1d, _FROM_ZERO, lay_out=_channels_first),
    ),
    "long_conv": (
        Baseline(
            "torch.fft", _fft_conv, _all_of(_without_a_part, _too_long_a_filter), lay_out=_channels_first,
        ),
    ),
}  # fmt: skip
