"""How each mixer takes the queries, keys and values that an attention module has already made."""

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from subquad.mixers import Mixer, State, create, known_options, state_bytes

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
    "sink_window": Graft(QKV, _of_heads, rotary=True, options=dict(rotary_base=None)),
    "linear_attention": Graft(QKV, rotary=True),
    "hedgehog_window": Graft(QKV, _of_heads, rotary=True, options=dict(rotary_base=None)),
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


class GraftedMixer(nn.Module):
    """A mixer that goes on from the queries, keys and values of an attention module, whose output projection follows.

    Args:
        name: a key of MIXERS.
        d_model: width of the attention module's input.
        heads: the module's.
        options: of the mixer.
    """

    def __init__(self, name: str, d_model: int, heads: Heads, options: Mapping[str, Any]):
        super().__init__()
        self.name, self.heads, self.options = name, heads, dict(options)
        known, rule = known_options(name), GRAFTS[name]
        shared = "num_kv_heads" in known  # do query heads share keys and values?
        sizes = heads if shared else heads._replace(num_kv_heads=heads.num_heads)
        defaults = {option: value for option, value in sizes._asdict().items() if option in known}
        self.mixer = create(name, d_model, **(defaults | dict(rule.options) | dict(options)))
        self.groups = getattr(self.mixer, "heads", (heads.num_heads,) * 3)  # of q, k and v
        self.kept = (*self._graft_inputs(rule), "o")
        if rule.output and self.mixer.out_proj.in_features == heads.width:
            self.mixer.out_proj = nn.Identity()
        elif d_model != heads.width:
            raise ValueError(
                f"swap: {name} with these options returns {d_model} channels, but the output projection of this "
                f"attention takes {heads.num_heads} heads of {heads.head_dim}; use a mixer of heads, such as gla"
            )

    def _graft_inputs(self, rule: Graft) -> tuple[str, ...]:
        """Replace the projections of what is given; the names of q, k and v that the mixer takes."""
        offered = {part: num * self.heads.head_dim for part, num in zip("qkv", self.groups, strict=True)}
        kept = set()
        for attribute, parts in rule.inputs.items():
            projection = getattr(self.mixer, attribute)
            equal = [projection.out_features // len(parts)] * len(parts)
            widths = rule.widths(self.mixer) if rule.widths else equal
            given = frozenset(part for part, width in zip(parts, widths, strict=True) if offered.get(part) == width)
            setattr(self.mixer, attribute, GraftedProjection(projection, parts, widths, given))
            kept |= given
        return tuple(part for part in "qkv" if part in kept)

    def run(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: State) -> tuple[Tensor, State]:
        """The tokens that follow `state`: their outputs (b, t, h, k) and the state after them.

        Args:
            x: (b, t, d) input of the attention module.
            q: (b, t, h, k) queries, as for scores of scale 1 / sqrt(k).
            k, v: (b, t, g, k) keys and values.
            state: State() before the first token.
        """
        with self._given(q, k, v):
            y, state = self.mixer.run(x, state)
        return y.unflatten(-1, (self.heads.num_heads, self.heads.head_dim)), state

    def run_sequences(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, begins: Tensor) -> Tensor:
        """Outputs of rows of several sequences, each run alone; begins (b, t) is True at a token that begins one."""
        rows = []
        for row, begin in enumerate(begins):
            places = {0, *begin.nonzero().flatten().tolist(), len(begin)}
            parts = []
            for start, stop in itertools.pairwise(sorted(places)):
                tokens = (part[row, None, start:stop] for part in (x, q, k, v))
                parts.append(self.run(*tokens, State())[0])
            rows.append(torch.cat(parts, dim=1))
        return torch.cat(rows)

    def run_padded(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Rows of which each begins at its own token, `starts` (b,): those that begin together are run together.

        A row that begins at a later token than the first must have none in `state`. Outputs before a row's first token
        are zero.
        """
        t, ys, states, order = x.shape[1], [], [], []
        for start in starts.unique().tolist():
            rows = (starts == start).nonzero().flatten()
            order.append(rows)
            if start == t:  # no token yet; the run only tells what a state looks like
                y, after = self.run(*(part[rows] for part in (x, q, k, v)), State(position=state.position))
                ys.append(torch.zeros_like(y))
                states.append(after.emptied())
                continue
            fresh = State(position=state.position + start)
            before = state.index_select(rows) if start == 0 and state.position else fresh
            y, after = self.run(*(part[rows, start:] for part in (x, q, k, v)), before)
            ys.append(F.pad(y, (0, 0, 0, 0, start, 0)))
            states.append(after)
        back = torch.cat(order).argsort()
        return torch.cat(ys)[back], State.join(states).index_select(back)

    def mixing_matrix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The mixer's (b, h, t, t) or, where it mixes channels, (b, d, t, t)."""
        with self._given(q, k, v):
            return self.mixer.mixing_matrix(x)

    def state_size(self, t: int, like: Tensor) -> int:
        """Bytes that one sequence carries after t tokens in the dtype of `like`, read off a run on shapes alone."""
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            num_heads, groups, _ = self.heads
            x = like.new_empty(1, t, self.mixer.d_model)
            parts = (like.new_empty(1, t, n, self.heads.head_dim) for n in (num_heads, groups, groups))
            return state_bytes(self.run(x, *parts, State())[1])

    @contextlib.contextmanager
    def _given(self, *heads: Tensor):
        """For the time of one call the grafted projections have these q, k and v, repeated as the mixer needs them."""
        repeated = (_repeat(part, groups) for part, groups in zip(heads, self.groups, strict=True))
        given = {name: part.flatten(2) for name, part in zip("qkv", repeated, strict=True)}
        grafted = [module for module in self.mixer.modules() if isinstance(module, GraftedProjection)]
        for module in grafted:
            module.given = given
        try:
            yield
        finally:
            for module in grafted:
                module.given = {}


def _repeat(heads: Tensor, num: int) -> Tensor:
    """Each head of (b, t, g, k) as often as the mixer has it."""
    return heads if heads.shape[2] == num else heads.repeat_interleave(num // heads.shape[2], dim=2)


def row_starts(real: Tensor, begun: Tensor, carry: bool, where: str) -> Tensor:
    """The first real token of each row (b,), t if there is none, of tokens (b, t) of which some are padding.

    Args:
        real: False at padding.
        begun: (b,) the rows that have seen real tokens before these.
        carry: a state is carried on. Padding behind a row's last token reaches no token before it, but a state must
            not hold it.
        where: what the error names.
    """
    t = real.shape[1]
    starts = torch.where(real.any(1), real.int().argmax(1), t)
    behind = ~real & (torch.arange(t, device=real.device) >= starts[:, None])
    if (behind.cumsum(1).bool() & real).any() or (begun & (starts > 0)).any() or (carry and behind.any()):
        raise ValueError(
            f"{where}: padding after real tokens, which later tokens would see; pad on the left (padding_side='left')"
        )
    return starts
