"""Swap modules of a plain PyTorch model, by class or by path."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from subquad.mixers import create

from ._report import SwappedLayer, SwapReport

Modules = type[nn.Module] | str | list[str]


def swap_modules(
    model: nn.Module, mixer: str, modules: Modules, d_model: int | None, context: int, options: Mapping[str, Any]
) -> SwapReport:
    """As `subquad.swap` says."""
    from subquad.nn import MultiheadMixer

    names, made, layers = _names(model, modules), {}, []
    for name in names:
        old = model.get_submodule(name)
        weight = next(old.parameters(), None)
        like = {} if weight is None else dict(device=weight.device, dtype=weight.dtype)
        if isinstance(old, nn.MultiheadAttention):
            new = MultiheadMixer.of(old, mixer, **options)
            kept, parameters = new.grafted.kept, new.grafted.parameters()
            before = 2 * context * old.embed_dim * weight.element_size()
            after = new.grafted.state_size(context, like=weight)
        elif d_model is None:
            raise ValueError(
                f"swap: {name} is a {type(old).__name__}, of which no weights can be kept; say with d_model=... how "
                "wide its tokens are, and it is replaced by a mixer (b, t, d) -> (b, t, d)"
            )
        else:
            new = create(mixer, d_model, **(like | dict(options))).train(old.training)
            kept, parameters, before, after = (), new.parameters(), None, new.state_size(context)
        made[name] = new
        new_parameters = sum(parameter.numel() for parameter in parameters)
        layers.append(SwappedLayer(name, mixer, tuple(kept), (), new_parameters, before, after))
    for name, new in made.items():
        model.set_submodule(name, new)
    return SwapReport(tuple(layers), context)


def _names(model: nn.Module, modules: Modules) -> list[str]:
    everything = dict(model.named_modules())
    if isinstance(modules, type):
        names = [name for name, module in everything.items() if name and isinstance(module, modules)]
        if not names:
            known = sorted({type(module).__name__ for module in everything.values()})
            raise ValueError(f"swap: no module is a {modules.__name__}; the classes are {', '.join(known)}")
        return names
    names = [modules] if isinstance(modules, str) else list(modules)
    unknown = [name for name in names if not name or name not in everything]
    if unknown or not names:
        raise ValueError(
            f"swap: no module has the path {unknown}; expected some of {', '.join(filter(None, everything))}"
        )
    return names
