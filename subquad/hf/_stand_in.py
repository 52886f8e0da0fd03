"""A mixer in the place of an attention module's softmax.

The module stays what it is: it projects, normalises and rotates queries, keys and values, counts tokens in the cache,
calls an attention function, and projects what that returns. The function is ours: it gives q, k and v to the mixer,
which goes on from there. So every weight of the module is kept, under its own name, for any architecture whose modules
ask transformers' AttentionInterface.
"""

import copy
import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import Cache

from subquad.mixers import State, state_bytes

from ._cache import MixerLayer
from ._grafts import GRAFTS, GraftedProjection, Heads, graft
from ._masks import Segment

NAME = "subquad_mixer"  # of the attention function
CHILD = "stand_in"  # where the attention module has it


class _Call(NamedTuple):
    """What the attention function is not told."""

    x: Tensor  # (b, t, d)
    layer: MixerLayer | None
    own: int  # index of the first new token's key in the mask


class StandIn(nn.Module):
    """A mixer that is given q, k and v of the attention module it stands in for.

    Args:
        name: a key of MIXERS.
        d_model: width of the module's input.
        heads: the module's.
        options: of the mixer.
    """

    def __init__(self, name: str, d_model: int, heads: Heads, options: dict[str, Any]):
        super().__init__()
        self.name, self.heads, self.options = name, heads, dict(options)
        self.mixer, self.kept = graft(name, d_model, heads, options)
        self.call: _Call | None = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, borders: Tensor | None
    ) -> Tensor:
        """(b, t, h, k) of queries (b, h, t, k), keys and values (b, g, t, k), all of this call's tokens."""
        assert self.call is not None, "the attention function was called, but not the module's forward pre-hook"
        call, self.call = self.call, None
        q = query * (scale * query.shape[-1] ** 0.5)  # mixers take 1 / sqrt(k)
        sizes = (*query.shape[1::2], *key.shape[1::2])
        expected = (*self.heads[::2], *self.heads[1:])
        if sizes != expected or value.shape != key.shape:
            raise ValueError(
                f"{self.name}: made for heads {expected} of (queries, width, keys, width), got {sizes} and values "
                f"{tuple(value.shape)}"
            )
        given = {"q": self._flat(q, 0), "k": self._flat(key, 1), "v": self._flat(value, 2)}
        state = State() if call.layer is None else call.layer.state
        segment = self._segment(call, mask, borders)
        if segment is None:
            y, state = self._run(call.x, given, state)
            begun = torch.ones(len(call.x), dtype=torch.bool, device=call.x.device)
        elif segment.begins.any():
            y, begun = self._run_sequences(call, given, segment), None
        else:
            y, state, begun = self._run_padded(call, given, state, segment.real)
        if call.layer is not None:
            call.layer.state, call.layer.begun = state, begun
        return y.unflatten(-1, (self.heads.num_heads, self.heads.head_dim))

    def state_size(self, t: int, like: Tensor) -> int:
        """Bytes that one sequence carries after t tokens in the dtype of `like`, read off a run on shapes alone."""
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            x = like.new_empty(1, t, self.mixer.d_model)
            groups = getattr(self.mixer, "heads", (self.heads.num_heads,) * 3)
            given = {p: like.new_empty(1, t, n * self.heads.head_dim) for p, n in zip("qkv", groups, strict=True)}
            return state_bytes(self._run(x, given, State())[1])

    def _flat(self, x: Tensor, part: int) -> Tensor:
        """(b, t, c) of (b, g, t, k), each head as often as the mixer has it."""
        x = x.transpose(1, 2)
        wanted = getattr(self.mixer, "heads", (self.heads.num_heads,) * 3)[part]
        return (x if x.shape[2] == wanted else x.repeat_interleave(wanted // x.shape[2], dim=2)).flatten(2)

    def _segment(self, call: _Call, mask: Tensor | None, borders: Tensor | None) -> Segment | None:
        """What is not one sequence a row, from its first token to the last; None if all is."""
        b, t = call.x.shape[:2]
        if borders is not None:
            begins = torch.zeros(1, t + 1, dtype=torch.bool, device=call.x.device)
            begins[0, borders[1:].long()] = True
            return Segment(torch.ones_like(begins[:, :t]), begins[:, :t])
        if mask is None or t == 1:
            return None
        segment = Segment.of(mask, call.own, t)
        segment = Segment(*(part.expand(b, -1) for part in segment))
        return None if segment.real.all() and not segment.begins.any() else segment

    def _run(self, x: Tensor, given: dict[str, Tensor], state: State) -> tuple[Tensor, State]:
        grafted = [module for module in self.mixer.modules() if isinstance(module, GraftedProjection)]
        for module in grafted:
            module.given = given
        try:
            return self.mixer.run(x, state)
        finally:
            for module in grafted:
                module.given = {}

    def _run_sequences(self, call: _Call, given: dict[str, Tensor], segment: Segment) -> Tensor:
        """Sequences side by side in a row: each from the start, alone."""
        if call.layer is not None:
            raise ValueError(f"{self.name}: packed sequences leave no state to go on from; set use_cache=False")
        rows = []
        for row, (real, begins) in enumerate(zip(*segment, strict=True)):
            places = [0, *begins.nonzero().flatten().tolist(), len(real)]
            parts = [
                self._run(call.x[row, None, start:stop], _cut(given, row, slice(start, stop)), State())[0]
                for start, stop in itertools.pairwise(places)
            ]
            rows.append(torch.cat(parts, dim=1))
        return torch.cat(rows)

    def _run_padded(
        self, call: _Call, given: dict[str, Tensor], state: State, real: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        """Rows that begin at different tokens: those that begin together are run together, without their padding.

        Padding behind a row's last token reaches no token before it, so it is run as if it were real; but a state must
        not hold it.
        """
        t = real.shape[1]
        starts = torch.where(real.any(1), real.int().argmax(1), t)
        begun = torch.zeros_like(real[:, 0]) if call.layer is None or call.layer.begun is None else call.layer.begun
        behind = ~real & (torch.arange(t, device=real.device) >= starts[:, None])
        holes = (behind.cumsum(1).bool() & real).any() or (begun & (starts > 0)).any()
        if holes or (call.layer is not None and behind.any()):
            raise ValueError(
                f"{self.name}: padding after real tokens, which a state would take for tokens; pad on the left "
                "(padding_side='left')"
            )
        ys, states, order = [], [], []
        for start in starts.unique().tolist():
            rows = (starts == start).nonzero().flatten()
            order.append(rows)
            x, parts = call.x[rows], {name: part[rows] for name, part in given.items()}
            if start == t:
                y, after = self._run(x, parts, State(position=state.position))
                ys.append(torch.zeros_like(y))
                states.append(after.emptied())
                continue
            fresh = State(position=state.position + start)
            before = state.index_select(rows) if start == 0 and state.position else fresh
            y, after = self._run(x[:, start:], _cut(parts, slice(None), slice(start, t)), before)
            ys.append(nn.functional.pad(y, (0, 0, start, 0)))
            states.append(after)
        back = torch.cat(order).argsort()
        state = State.join(states).index_select(back) if call.layer is not None else State()
        return torch.cat(ys)[back], state, begun | (starts < t)


def _cut(given: dict[str, Tensor], row: int | slice, tokens: slice) -> dict[str, Tensor]:
    rows = slice(row, row + 1) if isinstance(row, int) else row
    return {name: part[rows, tokens] for name, part in given.items()}


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    **beside,
) -> tuple[Tensor, None]:
    """What a module with a stand-in calls. Caps, sinks, windows and dropout of its softmax went with it (`beside`)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    y = getattr(module, CHILD)(query, key, value, attention_mask, scale, cu_seq_lens_q)
    return y.contiguous(), None


def attach(module: nn.Module, stand_in: StandIn) -> None:
    """Let the mixer stand in for the module's softmax from now on."""
    module.add_module(CHILD, stand_in)
    module.config, shared = copy.copy(module.config), module.config
    module.config._attn_implementation = NAME
    stand_in.undo = (module.register_forward_pre_hook(_note_call, with_kwargs=True), shared)


def detach(module: nn.Module) -> None:
    """Give the module its softmax back."""
    handle, module.config = getattr(module, CHILD).undo
    handle.remove()
    delattr(module, CHILD)


def _note_call(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Tell the stand-in what the attention function will not be told, and leave unrotated what it shall not get so."""
    stand_in, everything = getattr(module, CHILD), (*args, *kwargs.values())
    x = args[0] if args else kwargs["hidden_states"]
    cache = next((value for value in everything if isinstance(value, Cache)), None)
    layer = None if cache is None else MixerLayer.of(cache, module.layer_idx)
    stand_in.call = _Call(x, layer, 0 if layer is None else layer.next_key)
    if kwargs.get("position_embeddings") is not None and not GRAFTS[stand_in.name].rotary:
        cos, sin = kwargs["position_embeddings"]
        kwargs = kwargs | dict(position_embeddings=(torch.ones_like(cos), torch.zeros_like(sin)))
    return args, kwargs
