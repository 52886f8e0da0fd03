"""What can be profiled: an op or a mixer at given sizes, forward and backward."""

import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import NoneType
from typing import get_args, get_origin

import torch
from torch import Tensor

from subquad.kernels import OPS
from subquad.mixers import MIXERS, State, create, known_options, state_bytes

from .capture import tensor_bytes

Sizes = dict[str, int | float | str | bool | None]

DTYPES = ("float32", "float16", "bfloat16")
STAY_FLOAT32 = ("state", "log_decay", "beta", "A", "D")  # what training in half precision keeps in float32

HEADS = dict(b=4, t=4096, h=16, k=64, v=64)
OP_SIZES: dict[str, Sizes] = {
    "causal_attention": HEADS,
    "linear_attention": HEADS,
    "polynomial_attention": HEADS | dict(k=16),
    "delta_rule": HEADS,
    "generalized_delta_rule": HEADS,
    "selective_scan": dict(b=4, t=4096, d=2048, m=16),
    "linear_recurrence": dict(b=4, t=4096, d=1024),
    "short_conv": dict(b=4, t=4096, d=1024, w=4, activation="silu"),
    "long_conv": dict(b=4, t=4096, d=1024, l=4096),
}
MIXER_SIZES: Sizes = dict(b=4, t=4096, d_model=1024)
NUM_SEQS, PAST = "num_seqs", "past"  # sizes that no make_inputs and no mixer takes, see `Subject`
NOT_PROFILED = ("generator", "cu_seqlens", "starts", "gain", "gates", "steps")
FIXED_OPTIONS = ("backend", "device", "dtype")
MAX_ELEMENTS = 1 << 40  # of all tensors together: more fits in no GPU
SEED = 0
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """What is called, with all its sizes and options.

    One token (t = 1) is decoded: forward only, after what `state=True`, `s` or `past` give; longer rows are trained on,
    by default without a state.

    name: of an op, or of a mixer if `is_mixer`.
    sizes: of the op's make_inputs or of the mixer, and two of our own. `num_seqs`, of an op: so many sequences of
        equal length are packed into the one row of t tokens. `past`, of a mixer: tokens that its state has seen; a
        call then goes on from the state that the call before it left.
    dtype: name of the inputs' dtype; log_decay and a state stay float32.
    """

    name: str
    is_mixer: bool
    sizes: Sizes
    dtype: str

    @property
    def passes(self) -> tuple[str, ...]:
        return ("forward",) if self.sizes["t"] == 1 or PAST in self.sizes else ("forward", "backward")

    @property
    def label(self) -> str:
        sizes = ", ".join(f"{name}={value}" for name, value in self.sizes.items())
        return f"{'mixer' if self.is_mixer else 'op'} {self.name} ({sizes}, {self.dtype})"


@dataclass(frozen=True)
class Call:
    """`forward()` gives the output that the loss is made of, and more.

    inputs: by name: of an op its arguments, of a mixer x and the parameters.
    leaves: those to which a gradient goes; none where there is only a forward pass.
    state_bytes: of what a mixer has kept of its past; an op's state is among the inputs.
    """

    forward: Callable[[], tuple[Tensor, ...]]
    inputs: dict[str, object]
    leaves: list[Tensor]
    state_bytes: int = 0

    @property
    def tensors(self) -> list[Tensor]:
        return [x for x in self.inputs.values() if isinstance(x, Tensor)]

    def forward_bytes(self, outputs: Iterable[Tensor]) -> int:
        """What a forward pass cannot spare: inputs, the state and outputs once."""
        return _bytes(self.tensors) + self.state_bytes + _bytes(outputs)

    def backward_bytes(self, dy: Tensor, grads: Iterable[Tensor | None]) -> int:
        """What a backward pass cannot spare: inputs, the output's gradient and the gradients once."""
        return _bytes(self.leaves) + _bytes([dy, *grads])


def plan_subject(name: str, *, is_mixer: bool, sizes: Sizes, dtype: str) -> Subject:
    """Check names and sizes; sizes that are not given have the values of OP_SIZES or MIXER_SIZES.

    Raises:
        ValueError: an unknown name, dtype, size or option, or a size that cannot be.
    """
    what, known = ("mixer", tuple(MIXERS)) if is_mixer else ("op", OPS)
    if name not in known:
        elsewhere = OPS if is_mixer else tuple(MIXERS)
        hint = f"; {name!r} is {'an op' if is_mixer else 'a mixer'}" if name in elsewhere else ""
        raise ValueError(f"profile: unknown {what} {name!r}; expected one of {', '.join(known)}{hint}")
    if dtype not in DTYPES:
        raise ValueError(f"profile: unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    names = _mixer_sizes(name) if is_mixer else _op_sizes(name)  # and the type of each
    for size in sizes:
        if size not in names:
            raise ValueError(f"profile: {name} has no size {size!r}; expected some of {', '.join(names)}")
        _check_value(name, size, sizes[size], names[size])
    return Subject(name, is_mixer, (MIXER_SIZES if is_mixer else OP_SIZES[name]) | sizes, dtype)


def make_call(subject: Subject, device: torch.device = CPU) -> Call:
    """Fresh inputs and what to do with them. Under fake tensors no memory is taken."""
    return (_mixer_call if subject.is_mixer else _op_call)(subject, device)


def borders_of(t: int, num_seqs: int) -> tuple[int, ...]:
    """Where sequences of equal length begin and end in a row of t tokens; the last is the longest by what is left."""
    return (*(i * (t // num_seqs) for i in range(num_seqs)), t)


def _op_sizes(op: str) -> dict[str, type]:
    """What the op's make_inputs takes, but for values: of borders only the number, of equal lengths."""
    known = inspect.signature(_inputs_of(op)).parameters
    names = {name: parameter.annotation for name, parameter in known.items() if name not in NOT_PROFILED}
    return names | ({NUM_SEQS: int} if "cu_seqlens" in known else {})


def _mixer_sizes(mixer: str) -> dict[str, type]:
    known = inspect.signature(MIXERS[mixer]).parameters
    options = {option: known[option].annotation for option in known_options(mixer) if option not in FIXED_OPTIONS}
    return dict.fromkeys((*MIXER_SIZES, PAST), int) | options


def _check_value(name: str, size: str, value, annotation) -> None:
    """Of a type that the annotation has; whole numbers are counts, so at least 1."""
    types = tuple(get_origin(part) or part for part in get_args(annotation) or (annotation,))
    types = (*types, int) if float in types else types
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        wanted = " or ".join("None" if kind is NoneType else kind.__name__ for kind in types)
        raise ValueError(f"profile: {name}: {size} must be {wanted}, got {value!r}")
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise ValueError(f"profile: {name}: {size} must be at least 1, got {value}")


def _inputs_of(op: str) -> Callable:
    return importlib.import_module(f"subquad.kernels.{op}._inputs").make_inputs


def _op_call(subject: Subject, device: torch.device) -> Call:
    function = getattr(importlib.import_module(f"subquad.kernels.{subject.name}"), subject.name)
    make_inputs = _inputs_of(subject.name)
    known = inspect.signature(make_inputs).parameters
    sizes = ({"state": False} if "state" in known else {}) | subject.sizes
    if NUM_SEQS in sizes:
        sizes["cu_seqlens"] = borders_of(sizes["t"], sizes.pop(NUM_SEQS))
    learns = "backward" in subject.passes
    inputs = make_inputs(torch.Generator().manual_seed(SEED), **sizes)
    for name, x in inputs.items():
        if isinstance(x, Tensor):
            dtype = torch.float32 if name in STAY_FLOAT32 else getattr(torch, subject.dtype)
            inputs[name] = x.to(device, dtype).requires_grad_(learns) if x.is_floating_point() else x.to(device)

    def forward() -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(learns):
            result = function(**inputs, backend="triton")
        return result if isinstance(result, tuple) else (result,)

    call = Call(forward, inputs, [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad])
    _check_size(subject, call)
    return call


def _mixer_call(subject: Subject, device: torch.device) -> Call:
    sizes = dict(subject.sizes)
    past = sizes.pop(PAST, 0)
    b, t, d_model = (sizes.pop(name) for name in MIXER_SIZES)
    dtype = getattr(torch, subject.dtype)
    learns = "backward" in subject.passes
    mixer = create(subject.name, d_model, **sizes, backend="triton", device=device, dtype=dtype)
    if not learns:
        mixer.requires_grad_(False)
    x = torch.randn(b, t, d_model, device=device, dtype=dtype, requires_grad=learns)
    inputs = {"x": x, **dict(mixer.named_parameters())}
    state = State()
    if past:
        with torch.no_grad():
            state = mixer.run(torch.randn(b, past, d_model, device=device, dtype=dtype), state)[1]

    def forward() -> tuple[Tensor, ...]:
        nonlocal state
        if learns:
            return (mixer(x),)
        with torch.no_grad():
            y, state = mixer.run(x, state)
        return (y,)

    call = Call(forward, inputs, [x for x in inputs.values() if x.requires_grad], state_bytes(state))
    _check_size(subject, call)
    return call


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(tensor_bytes(x) for x in tensors if x is not None)


def _check_size(subject: Subject, call: Call) -> None:
    count = sum(x.numel() for x in call.tensors)
    if count > MAX_ELEMENTS:
        raise ValueError(f"profile: {subject.label}: {count:.1e} elements, expected at most {MAX_ELEMENTS:.1e}")
