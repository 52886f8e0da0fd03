"""MAD's synthetic tasks (Poli et al. 2024, arXiv 2403.17844); its selective copying is `tasks.SelectiveCopying`."""

from .compression import Compression
from .fuzzy_recall import FuzzyRecall
from .in_context_recall import InContextRecall, NoisyRecall
from .memorization import Memorization

__all__ = ["Compression", "FuzzyRecall", "InContextRecall", "Memorization", "NoisyRecall"]
