"""The attention modules of a transformers decoder, and their heads."""

import inspect
from collections.abc import Callable, Iterable

from torch import nn
from transformers import PreTrainedConfig

from subquad.swapping._grafts import Heads

Layers = int | slice | Iterable[int] | Callable[[int], bool] | None


def find_attention(model: nn.Module) -> dict[int, tuple[str, nn.Module]]:
    """Layer index -> name and module of each causal self-attention that asks transformers' AttentionInterface.

    Raises:
        ValueError: there is none, or two of one index. The message names the modules that look like attention.
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if not _is_attention(module):
            continue
        if module.layer_idx in found:
            raise ValueError(
                f"swap: {name} and {found[module.layer_idx][0]} are both attention of layer {module.layer_idx}; models "
                "of more than one decoder are not supported"
            )
        found[module.layer_idx] = (name, module)
    if not found:
        looking = [
            f"{n} ({type(m).__name__})" for n, m in model.named_modules() if "attention" in type(m).__name__.lower()
        ]
        listed = "\n  ".join(looking) if looking else "none whose class is named after attention"
        raise ValueError(
            f"swap: found no attention of transformers in {type(model).__name__}. Modules that look like it:\n"
            f"  {listed}\nName the modules by hand, by class or by path: subquad.swap(model, ..., modules=...)"
        )
    return dict(sorted(found.items()))


def choose_layers(available: Iterable[int], layers: Layers) -> list[int]:
    """The indices asked for: one, several, a slice, or those for which a function is true; all if None."""
    available = list(available)
    if layers is None:
        return available
    if isinstance(layers, int):
        layers = [layers]
    if isinstance(layers, slice):
        chosen = available[layers]
    elif callable(layers):
        chosen = [index for index in available if layers(index)]
    else:
        chosen = [index + len(available) if index < 0 else index for index in layers]
        unknown = [index for index in chosen if index not in available]
        if unknown:
            raise ValueError(f"swap: no attention in layers {unknown}; expected some of {available}")
    if not chosen:
        raise ValueError(f"swap: layers={layers!r} chooses none of {available}")
    return chosen


def heads_of(module: nn.Module) -> Heads:
    """The numbers and width of the heads, from the module where it has them, else from its config."""
    config: PreTrainedConfig = module.config
    num_heads = config.num_attention_heads
    head_dim = next(
        (getattr(module, name) for name in ("head_dim", "head_size") if hasattr(module, name)),
        config.hidden_size // num_heads,
    )
    groups = getattr(module, "num_key_value_groups", 1)
    return Heads(num_heads, num_heads // groups, head_dim)


def _is_attention(module: nn.Module) -> bool:
    """By its class's source, as transformers itself tells: what asks no AttentionInterface would hear of no mixer."""
    return (
        "Attention" in type(module).__name__
        and isinstance(getattr(module, "config", None), PreTrainedConfig)
        and isinstance(getattr(module, "layer_idx", None), int)
        and getattr(module, "is_causal", True)
        and not getattr(module, "is_cross_attention", False)
        and "ALL_ATTENTION_FUNCTIONS" in inspect.getsource(type(module))
    )
