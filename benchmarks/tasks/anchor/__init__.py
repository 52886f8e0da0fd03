"""Anchor functions (Zhang et al. 2024, arXiv 2401.08309): a small token says what to do with the key beside it."""

from .composition import Composition, Synonym
from .intervals import MultiAnchor, MultiInterval
from .ours import Classification, ReadingComprehension, WorkingMemory
from .recitation import Recitation
from .single import FrequencyTest, Identity, StatisticalOutput, TenAnchors

__all__ = [
    "Classification",
    "Composition",
    "FrequencyTest",
    "Identity",
    "MultiAnchor",
    "MultiInterval",
    "ReadingComprehension",
    "Recitation",
    "StatisticalOutput",
    "Synonym",
    "TenAnchors",
    "WorkingMemory",
]
