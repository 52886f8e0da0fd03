"""Named runs of the recall benchmark: functions that return a frozen Recipe."""

from collections.abc import Callable

from ._cpu import anchor_depth_cpu, anchor_identity_cpu, frontier_cpu, zoology_cpu
from ._mqar import based_frontier, mqar_2026, quick, zoology_figure2
from ._recipe import Candidate, Course, Part, Problem, Recipe
from ._tasks import (
    anchor_composition,
    anchor_identity,
    anchors,
    bapo,
    copying,
    jrt_disjointness,
    mad,
    mad_sweep,
    mqar_forms,
    stack_languages,
    state_tracking,
)

RECIPES: dict[str, Callable[[], Recipe]] = {
    "quick": quick,
    "zoology-figure2": zoology_figure2,
    "based-frontier": based_frontier,
    "mqar-2026": mqar_2026,
    "zoology-cpu": zoology_cpu,
    "frontier-cpu": frontier_cpu,
    "mqar-forms": mqar_forms,
    "mad": mad,
    "mad-sweep": mad_sweep,
    "jrt-disjointness": jrt_disjointness,
    "anchor-identity": anchor_identity,
    "anchor-identity-cpu": anchor_identity_cpu,
    "anchor-depth-cpu": anchor_depth_cpu,
    "anchor-composition": anchor_composition,
    "anchors": anchors,
    "copying": copying,
    "state-tracking": state_tracking,
    "stack-languages": stack_languages,
    "bapo": bapo,
}

__all__ = ["RECIPES", "Candidate", "Course", "Part", "Problem", "Recipe", *(make.__name__ for make in RECIPES.values())]
