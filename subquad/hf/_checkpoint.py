"""A swapped model's config carries its swaps, so that save_pretrained and from_pretrained need nothing beside it.

A checkpoint of a swapped model has a model type of its own, "subquad_llama" for "llama": transformers without subquad
then refuses to load it, where under the old name it would load a model with its mixers missing.
"""

import functools
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

FAMILIES = (
    "gemma", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3",
    "smollm3",
)  # fmt: skip
PREFIX = "subquad_"
FIELD = "subquad_layers"  # of the config: layer -> mixer and options


class SwappedModel:
    """Mixed into a model's class: what is built from a config with swaps is swapped."""

    _is_stateful = True  # a state cannot go back to an earlier token: `generate` refuses assisted decoding

    def __init__(self, config: PreTrainedConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        attach_from_config(self)


def attach_from_config(model: PreTrainedModel) -> None:
    """Build the mixers that the config names."""
    from ._find import find_attention
    from ._stand_in import attach
    from ._swap import make_stand_in

    found = find_attention(model)
    for index, spec in getattr(model.config, FIELD).items():
        module = found[int(index)][1]
        attach(module, make_stand_in(module, spec["mixer"], spec["options"]))


@functools.cache
def swapped_classes(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel]
) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """The classes of the swapped model and of its config."""
    body = dict(model_type=PREFIX + config_class.model_type, __module__=__name__)
    swapped_config = type(f"Subquad{config_class.__name__}", (config_class,), body)
    body = dict(config_class=swapped_config, __module__=__name__)
    return swapped_config, type(f"Subquad{model_class.__name__}", (SwappedModel, model_class), body)


def register(model_type: str) -> None:
    """Let AutoModelForCausalLM load swapped models of a type, e.g. "llama"; the FAMILIES are known already."""
    config_class = CONFIG_MAPPING[model_type]
    swapped_config, swapped_model = swapped_classes(config_class, MODEL_FOR_CAUSAL_LM_MAPPING[config_class])
    AutoConfig.register(swapped_config.model_type, swapped_config, exist_ok=True)
    AutoModelForCausalLM.register(swapped_config, swapped_model, exist_ok=True)


def mark(model: PreTrainedModel, specs: dict[int, dict[str, Any]]) -> None:
    """Write the swaps into the model's config, and give both the classes of the swapped."""
    carried = {str(index): spec for index, spec in specs.items()}
    setattr(model.config, FIELD, getattr(model.config, FIELD, {}) | carried)
    if not isinstance(model, SwappedModel):
        model.config.__class__, model.__class__ = swapped_classes(type(model.config), type(model))


def unmark(model: PreTrainedModel) -> None:
    delattr(model.config, FIELD)
    model.config.__class__, model.__class__ = type(model.config).__mro__[1], type(model).__mro__[2]
