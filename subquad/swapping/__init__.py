"""swap and unswap: mixers in the place of a model's attention."""

import sys
from typing import Any

from torch import nn

from subquad.mixers import known_options

from ._modules import swap_modules
from ._report import SwappedLayer, SwapReport

__all__ = ["SwapReport", "SwappedLayer", "swap", "unswap"]


def swap(
    model: nn.Module,
    mixer: str,
    *,
    layers=None,
    modules=None,
    d_model: int | None = None,
    context: int = 4096,
    **options: Any,
) -> SwapReport:
    """Let a mixer take the place of softmax in a transformers decoder, and keep all of the model's weights.

    In any other model of PyTorch say with `modules` what to replace.

    In a decoder of transformers the attention modules go on to project, normalise and rotate q, k and v as they did;
    the mixer is given what it can use of them, and its output goes through their output projection. What it has beside
    these (gates, feature maps, decays, short convolutions) is new and starts as the mixer's own; so does a projection
    of another width. Mixers that tell positions by decays or convolutions get q and k unrotated; those without queries
    or keys of their own, such as Mamba, leave what the module makes of them unused.

    `generate`, caches, left padding, beams and chunked prefill work as before. save_pretrained carries the swap; load
    such a model with AutoModelForCausalLM.from_pretrained after `import subquad.hf`.

    In a plain model a mixer takes the place of the whole module. An nn.MultiheadAttention keeps its weights, and is
    called as before (`subquad.nn.MultiheadMixer`); any other must be called with tokens (b, t, d) alone.

    Args:
        model: changed in place; a decoder of transformers whose attention asks the AttentionInterface or, with
            `modules`, any.
        mixer: a key of MIXERS.
        layers: an index, several, a slice, or a function of an index that says which; all if None.
        modules: replace these modules of a plain model: a class, a path such as "blocks.0.attn", or several paths.
        d_model: width of their tokens, if they are no nn.MultiheadAttention.
        context: number of tokens at which the report counts bytes of state.
        options: of the mixer. Those that let more weights be kept have other defaults here: heads as the model has
            them, expand=1, expand_v=1, expand_k=1, no positions of its own.

    Returns:
        What was kept, lost and added, layer by layer; printed, it is a table.

    Raises:
        ValueError: no attention is recognised (the message lists what looks like it), no such layer or option, or a
            mixer that does not fit; the model is unchanged then.
    """
    known = known_options(mixer)
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"swap: {mixer} has no option {', '.join(unknown)}; it knows {', '.join(known)}")
    if modules is not None:
        if layers is not None:
            raise ValueError("swap: layers are for decoders of transformers, modules for any other model; give one")
        return swap_modules(model, mixer, modules, d_model, context, options)
    _check_model("swap", model)
    from subquad.hf._swap import swap as swap_attention

    return swap_attention(model, mixer, layers, context, options)


def unswap(model: nn.Module) -> None:
    """Give every swapped attention its softmax back and forget the mixers; the weights that both use stay as they are.

    Raises:
        ValueError: nothing is swapped.
    """
    _check_model("unswap", model)
    from subquad.hf._swap import unswap as unswap_attention

    unswap_attention(model)


def _check_model(where: str, model: nn.Module) -> None:
    if "transformers" in sys.modules:  # else nobody can hold one of its models
        from transformers import PreTrainedModel

        if isinstance(model, PreTrainedModel):
            return
    raise ValueError(
        f"{where}: expected a model of transformers, got {type(model).__name__}; of another model name what to "
        "replace: subquad.swap(model, ..., modules=...)"
    )
