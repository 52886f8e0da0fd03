"""Swap the attention of a transformers model for mixers, and back."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from subquad.swapping._grafts import Heads
from subquad.swapping._report import SwappedLayer, SwapReport

from ._checkpoint import mark, unmark
from ._find import Layers, choose_layers, find_attention, heads_of
from ._stand_in import CHILD, StandIn, attach, detach


def swap(model: PreTrainedModel, mixer: str, layers: Layers, context: int, options: Mapping[str, Any]) -> SwapReport:
    """As `subquad.swap` says."""
    found = find_attention(model)
    chosen = choose_layers(found, layers)
    taken = [index for index in chosen if hasattr(found[index][1], CHILD)]
    if taken:
        raise ValueError(f"swap: layers {taken} are swapped already; call subquad.unswap(model) first")
    # Every mixer is made and measured before the first is attached: bad options leave the model as it was.
    stand_ins = {index: make_stand_in(found[index][1], mixer, options) for index in chosen}
    sizes: dict[Heads, int] = {}
    for index, stand_in in stand_ins.items():
        if stand_in.heads not in sizes:
            sizes[stand_in.heads] = stand_in.state_size(context, like=next(found[index][1].parameters()))
    report = [_report(*found[index], stand_in, context, sizes) for index, stand_in in stand_ins.items()]
    for index, stand_in in stand_ins.items():
        attach(found[index][1], stand_in)
    mark(model, {index: {"mixer": mixer, "options": dict(options)} for index in chosen})
    return SwapReport(tuple(report), context)


def unswap(model: PreTrainedModel) -> None:
    """As `subquad.unswap` says."""
    swapped = list(swapped_attention(model))
    if not swapped:
        raise ValueError("unswap: no layer of this model is swapped")
    for _, module in swapped:
        detach(module)
    unmark(model)


def swapped_attention(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every attention module that a mixer stands in for."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, CHILD))


def make_stand_in(module: nn.Module, mixer: str, options: Mapping[str, Any]) -> StandIn:
    """On the device and in the dtype of the module's weights."""
    weight = next(module.parameters())
    with torch.device(weight.device):
        stand_in = StandIn(mixer, module.config.hidden_size, heads_of(module), dict(options))
    return stand_in.to(weight.dtype).train(module.training)


def _report(name: str, module: nn.Module, stand_in: StandIn, context: int, sizes: Mapping[Heads, int]) -> SwappedLayer:
    weight, heads = next(module.parameters()), stand_in.heads
    window = getattr(module, "sliding_window", None)
    tokens = context if window is None else min(context, window - 1)
    lost = {"softcap": "attn_logit_softcapping", "sinks": "sinks", "window": "sliding_window"}
    return SwappedLayer(
        name=name,
        mixer=stand_in.name,
        kept=tuple(stand_in.kept),
        lost=tuple(what for what, attribute in lost.items() if getattr(module, attribute, None) is not None),
        new_parameters=sum(parameter.numel() for parameter in stand_in.parameters()),
        bytes_before=2 * tokens * heads.num_kv_heads * heads.head_dim * weight.element_size(),
        bytes_after=sizes[heads],
    )
