"""The mixers, by the names the command line uses."""

import inspect
from typing import Any

from ._mixer import Mixer, State, state_bytes
from .attention import Attention
from .base_conv import BaseConv
from .based import Based
from .delta_net import DeltaNet
from .gated_delta_net import GatedDeltaNet
from .gla import GLA
from .h3 import H3
from .hedgehog_window import HedgehogWindow
from .hgrn2 import HGRN2
from .hybrid import HYBRIDS, MixerSpec, Pattern, lay, specs_of
from .hyena import Hyena
from .kimi_delta import KimiDelta
from .linear_attention import LinearAttention
from .mamba import Mamba
from .mamba2 import Mamba2
from .mlstm import MLSTM
from .rebased import ReBased
from .retention import Retention
from .rg_lru import RGLRU
from .rwkv7 import RWKV7
from .s4d import S4D
from .sink_window import SinkWindow
from .sliding_window import SlidingWindow

MIXERS = {
    # softmax family
    "attention": Attention,
    "sliding_window": SlidingWindow,
    "sink_window": SinkWindow,
    # linear family
    "linear_attention": LinearAttention,
    "hedgehog_window": HedgehogWindow,
    "based": Based,
    "rebased": ReBased,
    "retention": Retention,
    "gla": GLA,
    "hgrn2": HGRN2,
    "mlstm": MLSTM,
    "mamba2": Mamba2,
    # delta rule family
    "delta_net": DeltaNet,
    "gated_delta_net": GatedDeltaNet,
    "kimi_delta": KimiDelta,
    "rwkv7": RWKV7,
    # recurrences of channels
    "mamba": Mamba,
    "rg_lru": RGLRU,
    # convolution family
    "s4d": S4D,
    "h3": H3,
    "base_conv": BaseConv,
    "hyena": Hyena,
}

__all__ = [
    "GLA",
    "H3",
    "HGRN2",
    "HYBRIDS",
    "MIXERS",
    "MLSTM",
    "RGLRU",
    "RWKV7",
    "S4D",
    "Attention",
    "BaseConv",
    "Based",
    "DeltaNet",
    "GatedDeltaNet",
    "HedgehogWindow",
    "Hyena",
    "KimiDelta",
    "LinearAttention",
    "Mamba",
    "Mamba2",
    "Mixer",
    "MixerSpec",
    "ReBased",
    "Retention",
    "SinkWindow",
    "SlidingWindow",
    "State",
    "build_layers",
    "create",
    "known_options",
    "state_bytes",
]


def create(name: str, d_model: int, **options: Any) -> Mixer:
    """One mixer by name.

    Args:
        name: a key of MIXERS.
        d_model: width of the input and of the output.
        options: of that mixer's constructor; anything else is refused.
    """
    known = known_options(name)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"create: {name} has no option {', '.join(unknown)}; it knows {', '.join(known)}")
    return MIXERS[name](d_model, **options)


def build_layers(pattern: Pattern, d_model: int, num_layers: int, **options: Any) -> list[Mixer]:
    """The mixers of a model, layer by layer.

    Args:
        pattern: a key of MIXERS (that mixer in every layer) or of HYBRIDS, "base_conv,based", a MixerSpec, or a
            sequence of these. A pattern of several layers is repeated; it must fit at least once.
        d_model: width of every layer.
        num_layers: number of layers.
        options: each goes to the layers whose mixer has it, unless their MixerSpec says otherwise. One that no layer
            has is refused.
    """
    known = {spec.name: known_options(spec.name) for spec in specs_of(pattern)}
    unknown = [option for option in options if not any(option in names for names in known.values())]
    if unknown:
        knows = "; ".join(f"{name} knows {', '.join(names)}" for name, names in known.items())
        raise ValueError(f"build_layers: no layer has the option {', '.join(unknown)}; {knows}")
    layers = []
    for spec in lay(pattern, num_layers):
        shared = {option: value for option, value in options.items() if option in known[spec.name]}
        layers.append(create(spec.name, d_model, **(shared | dict(spec.options))))
    return layers


def known_options(name: str) -> tuple[str, ...]:
    """The options of a mixer's constructor, in its order."""
    if name in HYBRIDS:
        raise ValueError(f"mixers: {name!r} is a pattern of several layers; build it with build_layers")
    if name not in MIXERS:
        raise ValueError(f"mixers: unknown mixer {name!r}; expected one of {', '.join((*MIXERS, *HYBRIDS))}")
    return tuple(option for option in inspect.signature(MIXERS[name]).parameters if option != "d_model")
