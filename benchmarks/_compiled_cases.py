"""Which launches are compiled ahead of time: for each op its width classes, and its options at one width."""

from collections.abc import Iterator
from dataclasses import dataclass

WIDTH_MEANS = {
    "causal_attention": "head dim",
    "linear_attention": "head dim",
    "polynomial_attention": "head dim of v",
    "short_conv": "filter width",
    "long_conv": "length",
}
HEAD_DIMS = (16, 32, 64, 128, 256)
WIDTHS = {
    "causal_attention": HEAD_DIMS,
    "linear_attention": HEAD_DIMS,
    "polynomial_attention": HEAD_DIMS,
    "short_conv": (2, 3, 4, 8),
    "long_conv": (64, 1024, 16384),
}
OPTIONS_AT = 64  # head dim at which options are compiled
FULLY = ("float32", "bfloat16")  # float16 is compiled as bfloat16 is but for the type; it gets one form a width
BORDERS = (0, 48, 48, 128)


@dataclass(frozen=True)
class Case:
    """One call of an op: what it shows, its width class, and the sizes and options that `make_inputs` takes."""

    label: str
    width: int
    dims: dict

    @property
    def is_decoding(self) -> bool:
        """One token after others: without a backward pass."""
        return self.dims["t"] == 1


def cases(op: str, dtype: str) -> Iterator[Case]:
    """The calls of an op: the forms of every width in WIDTHS[op], and the options at one width."""
    for width in WIDTHS[op]:
        forms = list(_forms(op, width).items())
        for label, dims in forms if dtype in FULLY else forms[:1]:
            yield Case(label, width, dims)
    if dtype in FULLY:
        width, options = _options(op)
        for label, dims in options.items():
            yield Case(label, width, dims)


def _forms(op: str, width: int) -> dict[str, dict]:
    """The first is the one that every width has."""
    heads = dict(b=1, t=128, h=2)
    match op:
        case "causal_attention":
            return {"plain": dict(heads, k=width)}
        case "linear_attention":
            names = {"decay a head": "head"}
            if width >= OPTIONS_AT:  # narrower heads have room enough in any form
                names |= {"no decay": None, "decay a channel": "channel"}
            return {label: dict(heads, k=width, v=width, decay=decay) for label, decay in names.items()}
        case "polynomial_attention":
            return {"keys of 16": dict(heads, k=16, v=width, state=False)}
        case "short_conv":
            return {"silu": dict(b=2, t=128, d=128, w=width, activation="silu", state=False)}
        case "long_conv":
            return {"gated": dict(b=2, t=width, d=16, l=width)}


def _options(op: str) -> tuple[int, dict[str, dict]]:
    """(width, one case for each option or group of options that changes a kernel)."""
    heads = dict(b=1, t=128, h=2)
    square = dict(heads, k=OPTIONS_AT)
    match op:
        case "causal_attention":
            return OPTIONS_AT, {
                "window, grouped": dict(square, g=1, window=64),
                "softcap, sinks, padded": dict(square, softcap=20.0, sinks=True, starts=(16,)),
                "packed": dict(square, cu_seqlens=BORDERS),
                "decode": dict(b=2, t=1, s=128, h=4, g=1, k=OPTIONS_AT),
            }
        case "linear_attention":
            square = dict(square, v=OPTIONS_AT)
            return OPTIONS_AT, {
                "normalize, packed": dict(square, normalize=True, decay="head", cu_seqlens=BORDERS),
                "channel, packed": dict(square, decay="channel", cu_seqlens=BORDERS),
                "decode": dict(b=2, t=1, h=2, k=OPTIONS_AT, v=OPTIONS_AT, decay="head"),
            }
        case "polynomial_attention":
            return OPTIONS_AT, {
                "rebased, keys of 64": dict(square, v=OPTIONS_AT, coefficients=(0.0, 0.0, 1.0), state=False),
                "state, packed": dict(heads, k=16, v=OPTIONS_AT, cu_seqlens=BORDERS),
                "decode": dict(b=2, t=1, h=2, k=16, v=OPTIONS_AT),
            }
        case "short_conv":
            return 4, {
                "state": dict(b=2, t=128, d=128, w=4),
                "packed": dict(b=1, t=128, d=128, w=4, cu_seqlens=BORDERS, activation="silu"),
                "decode": dict(b=2, t=1, d=128, w=4, activation="silu"),
            }
        case "long_conv":
            return 64, {"plain": dict(b=2, t=64, d=16, l=64, skip=False, pre_gate=False, post_gate=False)}
