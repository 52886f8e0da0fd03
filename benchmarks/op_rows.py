"""What `subquad throughput --ops` measures: every op beside the published form that it replaces.

All at batch 1, 8 heads of width 64 in float32 unless a row says otherwise, forward and backward.
"""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from subquad.kernels.causal_attention import causal_attention
from subquad.kernels.delta_rule import delta_rule
from subquad.kernels.generalized_delta_rule import generalized_delta_rule
from subquad.kernels.linear_attention import linear_attention
from subquad.kernels.long_conv import long_conv
from subquad.kernels.polynomial_attention import polynomial_attention
from subquad.kernels.selective_scan import selective_scan
from subquad.kernels.short_conv import short_conv

from . import peers

Run = Callable[[], object]

NUM_HEADS, HEAD_DIM = 8, 64
FEATURE_DIM = 16  # Based's width of q and k before the expansion
WINDOW = 512
CONV_WIDTH = 4
SCAN_CHANNELS, SCAN_STATES = 1024, 16
LONG_CHANNELS, SHORT_CHANNELS = 256, 64  # of long convolutions over one long and over many short sequences


@dataclass(frozen=True)
class Sizes:
    """Lengths at which the rows are measured; the tests use small ones."""

    t: int = 8192
    scan_t: int = 2048  # a step a token takes minutes beyond
    slope: tuple[int, int] = (4096, 32768)
    memory: tuple[int, ...] = (2048, 8192, 32768)
    short_t: int = 64  # of recall training
    short_batch: int = 512


@dataclass(frozen=True)
class Comparison:
    """Ops that replace the same published form, timed in one round-robin with it.

    Args:
        peer: name of the published form.
        goals: how many times faster than it each op has to be.
        make: the peer by name, and each op: (sizes, device) -> what to time.
        few_rows: whether its products have too few rows for the matmul lever.
        package: what must be installed for the peer, "" if PyTorch is enough.
    """

    peer: str
    goals: dict[str, float]
    make: dict[str, Callable[[Sizes, torch.device], Run]]
    few_rows: bool = False
    package: str = ""

    @property
    def is_installed(self) -> bool:
        return not self.package or importlib.util.find_spec(self.package) is not None


def forward_backward(function: Callable[..., Tensor | tuple[Tensor, Tensor]], **inputs: Tensor) -> Run:
    """One forward pass and the gradients of all inputs, for a fixed gradient of the first output."""
    inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    with torch.no_grad():
        dy = torch.randn_like(_first(function(**inputs)))

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(_first(function(**inputs)), list(inputs.values()), dy)

    return run


def run_sdpa(t: int, device: torch.device) -> Run:
    q, k, v = (torch.randn(1, NUM_HEADS, t, HEAD_DIM, device=device) for _ in range(3))
    return forward_backward(peers.sdpa, q=q, k=k, v=v)


def run_attention(t: int, device: torch.device, window: int | None) -> Run:
    return forward_backward(partial(causal_attention, window=window), **_heads(t, device, HEAD_DIM))


def run_linear_attention(t: int, device: torch.device, decay: str) -> Run:
    """`decay`: "none", "scalar" (one for each head) or "vector" (one for each channel of the key)."""
    return forward_backward(linear_attention, **_fading_heads(t, device, decay))


def run_delta_rule(t: int, device: torch.device, decay: str = "none") -> Run:
    """`decay` as of `run_linear_attention`."""
    return forward_backward(delta_rule, **_delta_inputs(t, device, decay))


def run_generalized_delta_rule(t: int, device: torch.device) -> Run:
    return forward_backward(generalized_delta_rule, **_generalized_delta_inputs(t, device, "vector"))


def run_selective_scan(t: int, device: torch.device) -> Run:
    return forward_backward(selective_scan, **_scan_inputs(t, device))


def run_scan_loop(t: int, device: torch.device) -> Run:
    turned = {name: x.transpose(1, 2).contiguous() if x.ndim == 3 else x for name, x in _scan_inputs(t, device).items()}
    return forward_backward(peers.scan_loop, **turned)


def run_polynomial_attention(t: int, device: torch.device) -> Run:
    return forward_backward(polynomial_attention, **_heads(t, device, FEATURE_DIM))


def run_short_conv(t: int, device: torch.device) -> Run:
    d = NUM_HEADS * HEAD_DIM
    return forward_backward(short_conv, x=torch.randn(1, t, d, device=device), **_short_filter(d, device))


def run_long_conv(t: int, device: torch.device, batch: int = 1, d: int = LONG_CHANNELS) -> Run:
    gates = _gates((batch, t, d), device)
    return forward_backward(long_conv, x=torch.randn(batch, t, d, device=device), **gates, **_long_filter(d, t, device))


def run_fft_conv(
    t: int, device: torch.device, batch: int = 1, d: int = LONG_CHANNELS, *, in_model: bool = False
) -> Run:
    """In its own layout (b, d, t), or called as by a model whose tokens are (b, t, d)."""
    shape, conv = ((batch, t, d), peers.in_model(peers.fft_conv)) if in_model else ((batch, d, t), peers.fft_conv)
    x = torch.randn(shape, device=device)
    return forward_backward(conv, x=x, **_gates(shape, device), **_long_filter(d, t, device))


def run_conv1d(t: int, device: torch.device, *, in_model: bool = False) -> Run:
    """In its own layout (1, d, t), or called as by a model whose tokens are (1, t, d)."""
    d = NUM_HEADS * HEAD_DIM
    shape, conv = ((1, t, d), peers.in_model(peers.grouped_conv1d)) if in_model else ((1, d, t), peers.grouped_conv1d)
    return forward_backward(conv, x=torch.randn(shape, device=device), **_short_filter(d, device))


def run_preallocated_decode(t: int, device: torch.device) -> Run:
    """One token at the end of a context of t, in a cache with room for more, laid out as the mixers lay theirs."""
    q, k, v = (torch.randn(1, NUM_HEADS, 1, HEAD_DIM, device=device) for _ in range(3))
    caches = [torch.randn(1, NUM_HEADS, 2 * t, HEAD_DIM, device=device) for _ in range(2)]

    @torch.inference_mode()
    def run() -> Tensor:
        for cache, new in zip(caches, (k, v), strict=True):
            cache[:, :, t - 1] = new[:, :, 0]
        keys, values = (cache[:, :, :t].transpose(1, 2) for cache in caches)
        return causal_attention(q.transpose(1, 2), keys, values)

    return run


def run_concatenated_decode(t: int, device: torch.device) -> Run:
    q, k, v = (torch.randn(1, NUM_HEADS, 1, HEAD_DIM, device=device) for _ in range(3))
    past_k, past_v = (torch.randn(1, NUM_HEADS, t - 1, HEAD_DIM, device=device) for _ in range(2))
    return torch.inference_mode()(partial(peers.decode_by_concatenation, q, k, v, past_k, past_v))


def _at_t(make: Callable[[int, torch.device], Run]) -> Callable[[Sizes, torch.device], Run]:
    return lambda sizes, device: make(sizes.t, device)


def _many_short(make: Callable[[int, torch.device, int, int], Run]) -> Callable[[Sizes, torch.device], Run]:
    """The sizes of recall training."""
    return lambda sizes, device: make(sizes.short_t, device, sizes.short_batch, SHORT_CHANNELS)


def _heads(t: int, device: torch.device, key_dim: int) -> dict[str, Tensor]:
    q, k = (torch.randn(1, t, NUM_HEADS, key_dim, device=device) for _ in range(2))
    return {"q": q, "k": k, "v": torch.randn(1, t, NUM_HEADS, HEAD_DIM, device=device)}


def _fading_heads(t: int, device: torch.device, decay: str) -> dict[str, Tensor]:
    inputs = _heads(t, device, HEAD_DIM)
    inputs["k"] = inputs["k"] / HEAD_DIM**0.5
    if decay != "none":
        shape = (1, t, NUM_HEADS) if decay == "scalar" else (1, t, NUM_HEADS, HEAD_DIM)
        inputs["log_decay"] = -0.1 * torch.rand(shape, device=device)
    return inputs


def _delta_inputs(t: int, device: torch.device, decay: str) -> dict[str, Tensor]:
    inputs = _fading_heads(t, device, decay)
    return inputs | {"k": F.normalize(inputs["k"], dim=-1), "beta": torch.rand(1, t, NUM_HEADS, device=device)}


def _generalized_delta_inputs(t: int, device: torch.device, decay: str) -> dict[str, Tensor]:
    """RWKV-7's: what is asked under a key is erased under it by a share a channel."""
    inputs = _fading_heads(t, device, decay)
    key = F.normalize(torch.randn_like(inputs["k"]), dim=-1)
    return inputs | {"a": -key, "b": key * torch.rand_like(key)}


def _scan_inputs(t: int, device: torch.device) -> dict[str, Tensor]:
    x, dt = torch.randn(1, t, SCAN_CHANNELS, device=device), torch.rand(1, t, SCAN_CHANNELS, device=device) * 0.1
    B, C = (torch.randn(1, t, SCAN_STATES, device=device) for _ in range(2))
    A = -torch.arange(1.0, 1 + SCAN_STATES, device=device).repeat(SCAN_CHANNELS, 1)
    return {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": torch.ones(SCAN_CHANNELS, device=device)}


def _short_filter(d: int, device: torch.device) -> dict[str, Tensor]:
    return {"weight": torch.randn(d, CONV_WIDTH, device=device), "bias": torch.randn(d, device=device)}


def _gates(shape: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
    return {name: torch.randn(shape, device=device) for name in ("pre_gate", "post_gate")}


def _long_filter(d: int, t: int, device: torch.device) -> dict[str, Tensor]:
    return {"filter": torch.randn(d, t, device=device) / t, "skip": torch.randn(d, device=device)}


def _first(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def _in_both_layouts(
    op: str,
    goal: float,
    peer: str,
    run_peer: Callable[..., Run],
    run: Callable[..., Run],
    at: Callable[[Callable], Callable],
) -> Iterator[Comparison]:
    """An op beside a published convolution over (b, d, t) on its own, and beside what a model pays to call that."""
    for name, in_model in ((peer, False), (f"{peer} in a model", True)):
        yield Comparison(name, {op: goal}, {name: at(partial(run_peer, in_model=in_model)), op: at(run)})


def _beside_fla(
    op: str, peer: Callable[..., Tensor], inputs: Callable[..., dict[str, Tensor]], decay: str
) -> Comparison:
    """An op beside the plain chunked form of flash-linear-attention."""
    name = "fla, plain chunks"

    def run_peer(sizes: Sizes, device: torch.device) -> Run:
        return forward_backward(peer, **inputs(sizes.t, device, decay))

    return Comparison(name, {op: FLA_GOAL}, {name: run_peer, op: _at_t(SUBQUADRATIC[op])}, package="fla")


SUBQUADRATIC: dict[str, Callable[[int, torch.device], Run]] = {
    "sliding_window": partial(run_attention, window=WINDOW),
    "linear_attention": partial(run_linear_attention, decay="none"),
    "linear_attention/scalar": partial(run_linear_attention, decay="scalar"),
    "linear_attention/vector": partial(run_linear_attention, decay="vector"),
    "delta_rule": run_delta_rule,
    "delta_rule/scalar": partial(run_delta_rule, decay="scalar"),
    "delta_rule/vector": partial(run_delta_rule, decay="vector"),
    "generalized_delta_rule": run_generalized_delta_rule,
    "polynomial_attention": run_polynomial_attention,
    "selective_scan": run_selective_scan,
    "short_conv": run_short_conv,
    "long_conv": run_long_conv,
}
ATTENTION_GOALS = {
    "causal_attention": 1 / 1.05,
    "sliding_window": 4.5,
    "linear_attention": 18,
    "linear_attention/scalar": 13,
    "linear_attention/vector": 10,
    "delta_rule": 6.5,
    "delta_rule/scalar": 5.5,
    "polynomial_attention": 5.5,
}
FLA_GOAL = 3
COMPARISONS = (
    Comparison(
        "sdpa",
        ATTENTION_GOALS,
        {"sdpa": _at_t(run_sdpa), "causal_attention": _at_t(partial(run_attention, window=None))}
        | {name: _at_t(SUBQUADRATIC[name]) for name in ATTENTION_GOALS if name in SUBQUADRATIC},
    ),
    _beside_fla("linear_attention/scalar", peers.fla_scalar_decay, _fading_heads, "scalar"),
    _beside_fla("delta_rule", peers.fla_delta_rule, _delta_inputs, "none"),
    _beside_fla("delta_rule/scalar", peers.fla_gated_delta_rule, _delta_inputs, "scalar"),
    _beside_fla("delta_rule/vector", peers.fla_kimi_delta, _delta_inputs, "vector"),
    _beside_fla("generalized_delta_rule", peers.fla_generalized_delta_rule, _generalized_delta_inputs, "vector"),
    Comparison(
        "a step a token",
        {"selective_scan": 50},
        {
            "a step a token": lambda sizes, device: run_scan_loop(sizes.scan_t, device),
            "selective_scan": lambda sizes, device: run_selective_scan(sizes.scan_t, device),
        },
    ),
    *_in_both_layouts("long_conv", 1.6, "fft_conv", run_fft_conv, run_long_conv, _at_t),
    *_in_both_layouts("long_conv/short", 2.2, "fft_conv", run_fft_conv, run_long_conv, _many_short),
    *_in_both_layouts("short_conv", 4, "conv1d", run_conv1d, run_short_conv, _at_t),
    Comparison(
        "cat",
        {"decode": 2},
        {"cat": _at_t(run_concatenated_decode), "decode": _at_t(run_preallocated_decode)},
        few_rows=True,
    ),
)
SLOPE_GOALS = {name: 1.3 if name == "long_conv" else 1.15 for name in SUBQUADRATIC}
MEMORY_GOAL = 1.05  # slope of the peak memory: linear growth is 1, and less where a constant part still shows
