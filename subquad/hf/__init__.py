"""What transformers' models need of us.

Importing it makes attn_implementation="subquad" known, and lets AutoModelForCausalLM.from_pretrained load swapped
models of the FAMILIES; call `register` for another.
"""

from transformers import AttentionInterface, AttentionMaskInterface

from ._attention import NAME, attention
from ._checkpoint import FAMILIES, register
from ._masks import first_visible_mask
from ._stand_in import NAME as STAND_IN
from ._stand_in import attention as stand_in_attention

__all__ = ["FAMILIES", "register"]

AttentionInterface.register(NAME, attention)
AttentionInterface.register(STAND_IN, stand_in_attention)
AttentionMaskInterface.register(NAME, first_visible_mask)
for family in FAMILIES:
    register(family)
