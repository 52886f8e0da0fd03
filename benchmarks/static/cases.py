"""Which calls are compiled: for each op its width classes and kinds of decay at real sizes, and its options at one."""

from collections.abc import Iterator
from dataclasses import dataclass

from subquad.kernels import OPS

from ..profile.calls import DTYPES, Sizes, Subject

WIDTH_MEANS = {
    "causal_attention": "head dim",
    "linear_attention": "head dim",
    "polynomial_attention": "head dim of v",
    "delta_rule": "head dim",
    "generalized_delta_rule": "head dim",
    "selective_scan": "number of states a channel",
    "linear_recurrence": "number of channels",
    "short_conv": "filter width",
    "long_conv": "length",
}
HEAD_DIMS = (16, 32, 64, 128, 256)
WIDTHS = {
    "causal_attention": HEAD_DIMS,
    "linear_attention": HEAD_DIMS,
    "polynomial_attention": HEAD_DIMS,
    "delta_rule": HEAD_DIMS,
    "generalized_delta_rule": HEAD_DIMS,
    "selective_scan": (16, 64),
    "linear_recurrence": (1024,),
    "short_conv": (2, 3, 4, 8),
    "long_conv": (64, 1024, 4096, 16384),
}
HEADS = dict(b=4, t=4096, h=16)
FEW_HEADS = dict(b=1, t=4096, h=4)  # do not fill a GPU by themselves: an op may split time then
PACKED = dict(b=1, t=4096, h=16, num_seqs=4)
OPTIONS_AT = 64  # head dim at which options are compiled
OPTIONS_IN = "bfloat16"  # what an option changes it changes for every dtype
ONLY_FORMS = {"l40s": ("bfloat16",)}  # the GPU of the fallback configurations: every width once
FAST_TARGET, FAST_DTYPE = "h100", "bfloat16"


@dataclass(frozen=True)
class Case:
    """One call of an op: what it shows, its width class, and its sizes and options as `Subject` takes them."""

    op: str
    label: str
    width: int
    dtype: str
    sizes: Sizes

    @property
    def subject(self) -> Subject:
        return Subject(self.op, False, self.sizes, self.dtype)


def cases_of(op: str, target: str) -> Iterator[Case]:
    """The calls of an op that are compiled for a target: forms of every width and dtype, then options."""
    for dtype in dtypes_of(target):
        for width in WIDTHS[op]:
            for label, sizes in _forms(op, width).items():
                yield Case(op, label, width, dtype, sizes)
    if target not in ONLY_FORMS:
        width, options = _options(op)
        for label, sizes in options.items():
            yield Case(op, label, width, OPTIONS_IN, sizes)


def dtypes_of(target: str) -> tuple[str, ...]:
    return ONLY_FORMS.get(target, DTYPES)


def fast_cases() -> list[Case]:
    """One call of each op: what `make test` compiles anew."""
    return [next(case for case in cases_of(op, FAST_TARGET) if case.dtype == FAST_DTYPE) for op in OPS]


def _forms(op: str, width: int) -> dict[str, Sizes]:
    square = dict(HEADS, k=width, v=width)
    match op:
        case "causal_attention" | "generalized_delta_rule":
            return {"plain": square}
        case "linear_attention" | "delta_rule":
            kinds = {"no decay": None, "decay a head": "head", "decay a channel": "channel"}
            return {label: dict(square, decay=decay) for label, decay in kinds.items()}
        case "polynomial_attention":
            return {"keys of 16": dict(square, k=16)}
        case "selective_scan":
            return {"plain": dict(b=4, t=4096, d=2048, m=width)}
        case "linear_recurrence":
            return {"plain": dict(b=4, t=4096, d=8 * width), "few channels": dict(b=4, t=4096, d=width)}
        case "short_conv":
            return {"silu": dict(b=4, t=4096, d=1024, w=width, activation="silu")}
        case "long_conv":
            return {"gated": dict(b=4, t=width, d=1024, l=width)}


def _options(op: str) -> tuple[int, dict[str, Sizes]]:
    """(width, one case for each option or group of options that changes a kernel)."""
    both = dict(k=OPTIONS_AT, v=OPTIONS_AT)
    match op:
        case "causal_attention":
            return OPTIONS_AT, {
                "window, grouped": dict(HEADS, **both, g=4, window=512),
                "softcap, sinks, padded": dict(HEADS, **both, softcap=20.0, sinks=True, starts=(0, 16, 500, 4000)),
                "packed": dict(PACKED, **both),
                "decode": dict(b=4, t=1, s=4096, h=16, g=4, **both),
                "decode, long cache": dict(b=1, t=1, s=65536, h=16, g=4, **both),
            }
        case "linear_attention":
            return OPTIONS_AT, {
                "few heads": dict(FEW_HEADS, **both),
                "few heads, decay a head": dict(FEW_HEADS, **both, decay="head"),
                "few heads, decay a channel": dict(FEW_HEADS, **both, decay="channel"),
                "normalize, packed": dict(PACKED, **both, normalize=True, decay="head"),
                "channel, packed": dict(PACKED, **both, decay="channel"),
                "state": dict(HEADS, **both, decay="head", state=True),
                "decode": dict(b=4, t=1, h=16, **both, decay="head", state=True),
                "decode, channel": dict(b=4, t=1, h=16, **both, decay="channel", state=True),
            }
        case "polynomial_attention":
            return OPTIONS_AT, {
                "few heads": dict(FEW_HEADS, k=16, v=OPTIONS_AT),
                "rebased, keys of 64": dict(HEADS, **both, coefficients=(0.0, 0.0, 1.0)),
                "state, packed": dict(PACKED, k=16, v=OPTIONS_AT, state=True),
                "decode": dict(b=4, t=1, h=16, k=16, v=OPTIONS_AT, state=True),
            }
        case "delta_rule":
            return OPTIONS_AT, {
                "packed": dict(PACKED, **both, decay="head"),
                "state": dict(HEADS, **both, decay="channel", state=True),
                "decode": dict(b=4, t=1, h=16, **both, decay="head", state=True),
                "decode, channel": dict(b=4, t=1, h=16, **both, decay="channel", state=True),
            }
        case "generalized_delta_rule":
            return OPTIONS_AT, {
                "packed": dict(PACKED, **both),
                "state": dict(HEADS, **both, state=True),
                "decode": dict(b=4, t=1, h=16, **both, state=True),
            }
        case "selective_scan":
            return 16, {
                "few channels": dict(b=1, t=4096, d=1024, m=16),
                "packed, state": dict(b=1, t=16384, d=1024, m=16, num_seqs=4, state=True, skip=False),
                "decode": dict(b=4, t=1, d=2048, m=16, state=True),
            }
        case "linear_recurrence":
            return 1024, {
                "state": dict(b=4, t=4096, d=8192, state=True),
                "packed": dict(b=1, t=16384, d=1024, num_seqs=4),
                "decode": dict(b=4, t=1, d=1024, state=True),
            }
        case "short_conv":
            rows = dict(d=1024, w=4, activation="silu")
            return 4, {
                "state": dict(rows, b=4, t=4096, state=True),
                "packed": dict(rows, b=1, t=16384, num_seqs=4),
                "decode": dict(rows, b=4, t=1, state=True),
            }
        case "long_conv":
            plain = dict(b=4, t=4096, d=1024, l=4096, skip=False, pre_gate=False, post_gate=False)
            return 4096, {"plain": plain, "short filter": dict(b=4, t=4096, d=1024, l=128)}
