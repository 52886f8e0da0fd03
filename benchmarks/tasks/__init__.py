"""The tasks, by the name the command line uses."""

from ._task import NO_ANSWER, Batch, Task
from .mqar import MQAR

TASKS = {"mqar": MQAR}

__all__ = ["MQAR", "NO_ANSWER", "TASKS", "Batch", "Task"]
