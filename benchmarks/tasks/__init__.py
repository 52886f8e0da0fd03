"""The tasks, by the name the command line uses."""

from ._task import NO_ANSWER, Batch, Source, Task
from .anchor import (
    Classification,
    Composition,
    FrequencyTest,
    Identity,
    MultiAnchor,
    MultiInterval,
    ReadingComprehension,
    Recitation,
    StatisticalOutput,
    Synonym,
    TenAnchors,
    WorkingMemory,
)
from .bapo_easy import Disjointness, Equality, Index, Match2
from .bapo_hard import Majority, Match3, Reachability, SetDifference, Unique
from .compositional_mqar import CompositionalMQAR
from .copying import Copying, SelectiveCopying
from .flip_flop import FlipFlop
from .forgetting_mqar import ForgettingMQAR
from .induction import Induction
from .mad import Compression, FuzzyRecall, InContextRecall, Memorization, NoisyRecall
from .mqar import MQAR
from .needle import NeedleInNoise
from .phonebook import Phonebook
from .set_disjointness import SetDisjointness
from .stack_languages import Dyck, ReverseString, StackManipulation
from .word_problem import Parity, WordProblem

TASKS: dict[str, type[Task]] = {
    # recall
    "mqar": MQAR,
    "forgetting_mqar": ForgettingMQAR,
    "compositional_mqar": CompositionalMQAR,
    "set_disjointness": SetDisjointness,
    "copying": Copying,
    "selective_copying": SelectiveCopying,
    "induction": Induction,
    "phonebook": Phonebook,
    "needle": NeedleInNoise,
    # MAD, with selective_copying
    "in_context_recall": InContextRecall,
    "noisy_recall": NoisyRecall,
    "fuzzy_recall": FuzzyRecall,
    "compression": Compression,
    "memorization": Memorization,
    # anchor functions
    "identity": Identity,
    "frequency_test": FrequencyTest,
    "ten_anchors": TenAnchors,
    "statistical_output": StatisticalOutput,
    "composition": Composition,
    "synonym": Synonym,
    "multi_anchor": MultiAnchor,
    "multi_interval": MultiInterval,
    "recitation": Recitation,
    "reading_comprehension": ReadingComprehension,
    "classification": Classification,
    "working_memory": WorkingMemory,
    # state tracking
    "word_problem": WordProblem,
    "parity": Parity,
    "flip_flop": FlipFlop,
    # stack languages
    "reverse_string": ReverseString,
    "dyck": Dyck,
    "stack_manipulation": StackManipulation,
    # BAPO
    "index": Index,
    "equality": Equality,
    "disjointness": Disjointness,
    "match2": Match2,
    "majority": Majority,
    "match3": Match3,
    "unique": Unique,
    "set_difference": SetDifference,
    "reachability": Reachability,
}

__all__ = ["NO_ANSWER", "TASKS", "Batch", "Source", "Task", *(task.__name__ for task in TASKS.values())]
