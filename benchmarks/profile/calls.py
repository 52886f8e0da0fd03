"""What can be profiled: an op or a mixer at given sizes, forward and backward."""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import get_args, get_origin

import torch
from torch import Tensor

from subquad.kernels import OPS
from subquad.mixers import MIXERS, create, known_options

from ..compiled import DTYPES, STAY_FLOAT32

Sizes = dict[str, int | float | str | bool | None]

HEADS = dict(b=4, t=4096, h=16, k=64, v=64)
OP_SIZES: dict[str, Sizes] = {
    "causal_attention": HEADS,
    "linear_attention": HEADS,
    "polynomial_attention": HEADS | dict(k=16),
    "short_conv": dict(b=4, t=4096, d=1024, w=4, activation="silu"),
    "long_conv": dict(b=4, t=4096, d=1024, l=4096),
}
MIXER_SIZES: Sizes = dict(b=4, t=4096, d_model=1024)
NOT_PROFILED = ("generator", "s", "state", "cu_seqlens", "starts", "gain", "gates")
FIXED_OPTIONS = ("backend", "device", "dtype")
MAX_ELEMENTS = 1 << 40  # of all tensors together: more fits in no GPU


@dataclass(frozen=True)
class Subject:
    """What is called, with all its sizes and options; a state is never given, as in training.

    name: of an op, or of a mixer if `is_mixer`.
    dtype: name of the inputs' dtype; log_decay stays float32.
    """

    name: str
    is_mixer: bool
    sizes: Sizes
    dtype: str

    @property
    def label(self) -> str:
        sizes = ", ".join(f"{name}={value}" for name, value in self.sizes.items())
        return f"{'mixer' if self.is_mixer else 'op'} {self.name} ({sizes}, {self.dtype})"


@dataclass(frozen=True)
class Call:
    """`forward()` gives the output that the loss is made of; the gradient goes to `leaves`."""

    forward: Callable[[], tuple[Tensor, ...]]
    leaves: list[Tensor]


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


def make_call(subject: Subject) -> Call:
    """Fresh inputs and what to do with them. Under fake tensors no memory is taken."""
    return (_mixer_call if subject.is_mixer else _op_call)(subject)


def _op_sizes(op: str) -> dict[str, type]:
    """What the op's make_inputs takes, but for what is not profiled: decoding, packed and padded rows, values."""
    known = inspect.signature(_inputs_of(op)).parameters
    return {name: parameter.annotation for name, parameter in known.items() if name not in NOT_PROFILED}


def _mixer_sizes(mixer: str) -> dict[str, type]:
    known = inspect.signature(MIXERS[mixer]).parameters
    options = {option: known[option].annotation for option in known_options(mixer) if option not in FIXED_OPTIONS}
    return dict.fromkeys(MIXER_SIZES, int) | options


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


def _op_call(subject: Subject) -> Call:
    function = getattr(importlib.import_module(f"subquad.kernels.{subject.name}"), subject.name)
    make_inputs = _inputs_of(subject.name)
    sizes = subject.sizes
    if "state" in inspect.signature(make_inputs).parameters:
        sizes = sizes | {"state": False}
    inputs = make_inputs(torch.Generator(), **sizes)
    for name, x in inputs.items():
        if isinstance(x, Tensor) and x.is_floating_point():
            dtype = torch.float32 if name in STAY_FLOAT32 else getattr(torch, subject.dtype)
            inputs[name] = torch.empty(x.shape, dtype=dtype, requires_grad=True)
    leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
    _check_size(subject, leaves)

    def forward() -> tuple[Tensor, ...]:
        result = function(**inputs, backend="triton")
        return result if isinstance(result, tuple) else (result,)

    return Call(forward, leaves)


def _mixer_call(subject: Subject) -> Call:
    sizes = dict(subject.sizes)
    b, t, d_model = (sizes.pop(name) for name in MIXER_SIZES)
    dtype = getattr(torch, subject.dtype)
    mixer = create(subject.name, d_model, **sizes, backend="triton", dtype=dtype)
    x = torch.empty(b, t, d_model, dtype=dtype, requires_grad=True)
    leaves = [x, *(parameter for parameter in mixer.parameters() if parameter.requires_grad)]
    _check_size(subject, leaves)
    return Call(lambda: (mixer(x),), leaves)


def _check_size(subject: Subject, leaves: list[Tensor]) -> None:
    count = sum(x.numel() for x in leaves)
    if count > MAX_ELEMENTS:
        raise ValueError(f"profile: {subject.label}: {count:.1e} elements, expected at most {MAX_ELEMENTS:.1e}")
