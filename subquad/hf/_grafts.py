"""How each mixer takes the queries, keys and values that an attention module has already made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from subquad.mixers import Mixer, create, known_options

NEW = "-"  # a part of a projection that attention has not


class Heads(NamedTuple):
    """The heads of an attention module."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim


class Graft(NamedTuple):
    """What of a mixer the attention module's own parts replace."""

    inputs: Mapping[str, str] = {}  # projection: its parts in order, q, k, v or NEW
    widths: Callable[[Mixer], Sequence[int]] | None = None  # of those parts; equal if None
    rotary: bool = False  # queries and keys come rotated; else the mixer tells positions by itself
    output: bool = True  # the output projection is the module's
    options: Mapping[str, Any] = {}  # defaults that let more be kept


def _widths(mixer: Mixer) -> Sequence[int]:
    return mixer.widths


def _of_heads(mixer: Mixer) -> Sequence[int]:
    return [heads * mixer.head_dim for heads in mixer.heads]


QKV = {"qkv_proj": "qkv"}
GRAFTS = {
    "attention": Graft(QKV, _of_heads, rotary=True, options=dict(rotary_base=None)),
    "sliding_window": Graft(QKV, _of_heads, rotary=True, options=dict(rotary_base=None)),
    "linear_attention": Graft(QKV, rotary=True),
    "based": Graft(QKV, _widths, rotary=True),
    "rebased": Graft(QKV, _widths, rotary=True),
    "retention": Graft(QKV, rotary=True, options=dict(rotary_base=None)),
    "gla": Graft(QKV, _widths, options=dict(expand_k=1.0)),
    "hgrn2": Graft({"qfv_proj": f"q{NEW}v"}),
    "mlstm": Graft(QKV),
    "mamba2": Graft({"in_proj": f"v{NEW}{NEW}"}, _widths, options=dict(expand=1)),
    "delta_net": Graft(QKV, _widths),
    "gated_delta_net": Graft(QKV, _widths, options=dict(expand_v=1)),
    "kimi_delta": Graft(QKV, _widths),
    "rwkv7": Graft({"r_proj": "q", "k_proj": "k", "v_proj": "v"}, options=dict(token_shift=False)),
    "mamba": Graft({"in_proj": "v"}, options=dict(expand=1)),
    "rg_lru": Graft({"in_proj": "v"}),
    "s4d": Graft(output=False),
    "h3": Graft(QKV),
    "base_conv": Graft(output=False),
    "hyena": Graft({"in_proj": "qkv"}),
}


class GraftedProjection(nn.Module):
    """(b, t, d) -> (b, t, c): the given parts, and beside them what is still projected from x.

    Args:
        projection: the linear layer whose place this takes; the rows of parts that are not given stay.
        parts: names of the parts in order.
        widths: their widths.
        given: those that will be given.
    """

    def __init__(self, projection: nn.Linear, parts: str, widths: Sequence[int], given: frozenset[str]):
        super().__init__()
        self.parts = tuple(zip(parts, widths, strict=True))
        self.is_given = [part in given for part in parts]
        self.given: dict[str, Tensor] = {}  # set for the time of one call
        self.projection = None
        if not all(self.is_given):
            own = [width for width, is_given in zip(widths, self.is_given, strict=True) if not is_given]
            self.projection = nn.Linear(
                projection.in_features, sum(own), bias=projection.bias is not None,
                device=projection.weight.device, dtype=projection.weight.dtype,
            )  # fmt: skip
            with torch.no_grad():
                for mine, whole in zip(self.projection.parameters(), projection.parameters(), strict=True):
                    pieces = zip(whole.split(list(widths)), self.is_given, strict=True)
                    mine.copy_(torch.cat([piece for piece, is_given in pieces if not is_given]))

    def forward(self, x: Tensor) -> Tensor:
        widths = [width for (_, width), is_given in zip(self.parts, self.is_given, strict=True) if not is_given]
        own = iter(() if self.projection is None else self.projection(x).split(widths, dim=-1))
        pairs = zip(self.parts, self.is_given, strict=True)
        return torch.cat([self.given[part] if is_given else next(own) for (part, _), is_given in pairs], dim=-1)


def graft(name: str, d_model: int, heads: Heads, options: Mapping[str, Any]) -> tuple[Mixer, str]:
    """A mixer that is given what it can use of an attention module, and the names of that: of q, k, v and o."""
    where, rule, known = "swap", GRAFTS[name], known_options(name)
    sizes = heads._asdict() if "num_kv_heads" in known else heads._replace(num_kv_heads=heads.num_heads)._asdict()
    defaults = {option: value for option, value in sizes.items() if option in known} | dict(rule.options)
    mixer = create(name, d_model, **(defaults | dict(options)))
    groups = getattr(mixer, "heads", (heads.num_heads,) * 3)  # of q, k and v
    offered = {part: num * heads.head_dim for part, num in zip("qkv", groups, strict=True)}
    kept = set()
    for attribute, parts in rule.inputs.items():
        projection = getattr(mixer, attribute)
        widths = rule.widths(mixer) if rule.widths else [projection.out_features // len(parts)] * len(parts)
        given = frozenset(part for part, width in zip(parts, widths, strict=True) if offered.get(part) == width)
        setattr(mixer, attribute, GraftedProjection(projection, parts, widths, given))
        kept |= given
    if rule.output and mixer.out_proj.in_features == heads.width:
        mixer.out_proj = nn.Identity()
    elif d_model != heads.width:
        raise ValueError(
            f"{where}: {name} with these options returns {d_model} channels, but the output projection of this "
            f"attention takes {heads.num_heads} heads of {heads.head_dim}; use a mixer of heads, such as gla"
        )
    return mixer, "".join(part for part in "qkv" if part in kept) + "o"
