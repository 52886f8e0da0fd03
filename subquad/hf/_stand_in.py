"""A mixer in the place of an attention module's softmax.

The module stays what it is: it projects, normalises and rotates queries, keys and values, counts tokens in the cache,
calls an attention function, and projects what that returns. The function is ours: it gives q, k and v to the mixer,
which goes on from there. So every weight of the module is kept, under its own name, for any architecture whose modules
ask transformers' AttentionInterface.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from subquad.mixers import State
from subquad.swapping._grafts import GRAFTS, GraftedMixer, row_starts

from ._cache import MixerLayer
from ._masks import Segment

NAME = "subquad_mixer"  # of the attention function
CHILD = "stand_in"  # where the attention module has it


class _Call(NamedTuple):
    """What the attention function is not told."""

    x: Tensor  # (b, t, d)
    layer: MixerLayer | None
    own: int  # index of the first new token's key in the mask


class StandIn(GraftedMixer):
    """A mixer that is given q, k and v of the attention module it stands in for, and its state by the cache."""

    call: _Call | None = None
    awake = True

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, borders: Tensor | None
    ) -> Tensor:
        """(b, t, h, k) of queries (b, h, t, k), keys and values (b, g, t, k), all of this call's tokens."""
        assert self.call is not None, "the attention function was called, but not the module's forward pre-hook"
        (x, layer, _), call, self.call = self.call, self.call, None
        self._check(query, key, value)
        q = query * (scale * query.shape[-1] ** 0.5)  # a mixer divides by sqrt(k)
        parts = (x, *(heads.transpose(1, 2) for heads in (q, key, value)))
        state = State() if layer is None else layer.state
        segment = self._segment(call, mask, borders)
        begun = x.new_ones(len(x), dtype=torch.bool)
        if segment is None:
            y, state = self.run(*parts, state)
        elif segment.begins.any():
            if layer is not None:
                raise ValueError(f"{self.name}: packed sequences leave no state to go on from; set use_cache=False")
            y = self.run_sequences(*parts, segment.begins)
        else:
            before = torch.zeros_like(begun) if layer is None or layer.begun is None else layer.begun
            starts = row_starts(segment.real, before, layer is not None, self.name)
            y, state = self.run_padded(*parts, starts, state)
            begun = before | (starts < x.shape[1])
        if layer is not None:
            layer.state, layer.begun = state, begun
        return y

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        expected = (self.heads.num_heads, self.heads.num_kv_heads, self.heads.head_dim)
        if (query.shape[1], *key.shape[1::2]) != expected or value.shape != key.shape:
            raise ValueError(
                f"{self.name}: made for (query heads, key heads, width) = {expected}, got queries "
                f"{tuple(query.shape)}, keys {tuple(key.shape)} and values {tuple(value.shape)}"
            )

    def _segment(self, call: _Call, mask: Tensor | None, borders: Tensor | None) -> Segment | None:
        """What is not one sequence a row, from its first token to the last; None if all is."""
        b, t = call.x.shape[:2]
        if borders is not None:
            begins = torch.zeros(1, t + 1, dtype=torch.bool, device=call.x.device)
            begins[0, borders[1:].long()] = True
            return Segment(torch.ones_like(begins[:, :t]), begins[:, :t])
        if mask is None or t == 1:
            return None
        segment = Segment(*(part.expand(b, -1) for part in Segment.of(mask, call.own, t)))
        return None if segment.real.all() and not segment.begins.any() else segment


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
    stand_in.configs = (module.config, copy.copy(module.config))  # of softmax, which the model shares, and our own
    stand_in.configs[True]._attn_implementation = NAME
    module.config = stand_in.configs[True]
    stand_in.handle = module.register_forward_pre_hook(_note_call, with_kwargs=True)


def detach(module: nn.Module) -> None:
    """Give the module its softmax back."""
    stand_in = getattr(module, CHILD)
    stand_in.handle.remove()
    module.config = stand_in.configs[False]
    delattr(module, CHILD)


@contextlib.contextmanager
def awake(module: nn.Module, flag: bool) -> Iterator[None]:
    """For a time the mixer stands in (True) or the module runs its own softmax (False)."""
    stand_in = getattr(module, CHILD)
    before = stand_in.awake
    stand_in.awake, module.config = flag, stand_in.configs[flag]
    try:
        yield
    finally:
        stand_in.awake, module.config = before, stand_in.configs[before]


def run_alone(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """The output (b, t, d) of a module with its mixer awake, past all other hooks."""
    args, kwargs = _note_call(module, args, kwargs)
    return module.forward(*args, **kwargs)[0]


def _note_call(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Tell the stand-in what the attention function will not be told, and leave unrotated what it shall not get so."""
    stand_in, everything = getattr(module, CHILD), (*args, *kwargs.values())
    if not stand_in.awake:
        return args, kwargs
    x = args[0] if args else kwargs["hidden_states"]
    cache = next((value for value in everything if isinstance(value, Cache)), None)
    layer = None if cache is None else MixerLayer.of(cache, module.layer_idx)
    stand_in.call = _Call(x, layer, 0 if layer is None else layer.next_key)
    if kwargs.get("position_embeddings") is not None and not GRAFTS[stand_in.name].rotary:
        cos, sin = kwargs["position_embeddings"]
        kwargs = kwargs | dict(position_embeddings=(torch.ones_like(cos), torch.zeros_like(sin)))
    return args, kwargs
