"""What transformers' models need of us. Importing it makes attn_implementation="subquad" known."""

from transformers import AttentionInterface, AttentionMaskInterface

from ._attention import NAME, attention
from ._masks import first_visible_mask

__all__: list[str] = []

AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, first_visible_mask)
