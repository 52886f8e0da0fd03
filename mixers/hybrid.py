"""Hybrids: patterns of mixers laid over the layers of a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MixerSpec:
    """One layer of a pattern: a mixer's name and the options it is built with."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


Pattern = str | MixerSpec | Sequence["str | MixerSpec"]

HYBRIDS = {
    # Based's published mix (arXiv 2402.18668, sec. 5): a short convolution, Taylor attention, a window of 64 tokens.
    "hybrid": (
        MixerSpec("base_conv", {"conv_width": 3}),
        MixerSpec("based", {"feature_dim": 16}),
        MixerSpec("sliding_window", {"window": 64}),
    ),
}


def specs_of(pattern: Pattern) -> tuple[MixerSpec, ...]:
    """One period of a pattern, layer by layer.

    A pattern is a mixer's name, a hybrid's name, a MixerSpec, several of them in a sequence, or several names in one
    string: "base_conv,based".
    """
    specs = tuple(_walk(pattern))
    if not specs:
        raise ValueError(f"pattern: expected at least one mixer, got {pattern!r}")
    return specs


def lay(pattern: Pattern, num_layers: int) -> tuple[MixerSpec, ...]:
    """The pattern repeated from the first layer to the last."""
    specs = specs_of(pattern)
    if num_layers < len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise ValueError(
            f"pattern: {pattern!r} needs at least {len(specs)} layers ({names}), got num_layers={num_layers}"
        )
    return tuple(specs[layer % len(specs)] for layer in range(num_layers))


def _walk(pattern: Pattern) -> Iterator[MixerSpec]:
    if isinstance(pattern, MixerSpec):
        yield pattern
    elif isinstance(pattern, str):
        for name in (part.strip() for part in pattern.split(",")):
            yield from HYBRIDS.get(name, (MixerSpec(name),))
    else:
        for part in pattern:
            yield from _walk(part)
