"""What a call launches on the GPU that is here: our kernels and PyTorch's own operations, each under a mark of its own.

The marks stand in the profiler's trace around the launches, so that a time there finds the bytes and products that
were counted here.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

import triton
from torch.profiler import record_function

from .capture import Captured, HelperOp, Launch, Recorder, Session
from .trace import MARK

Marked = dict[str, Launch | HelperOp]  # what runs under each mark, without its beginning


class LiveSession(Session):
    """Records while `record` runs a call; every launch runs as it would without."""

    def __init__(self):
        super().__init__()
        self._records = False
        self._mark = ""
        self._num_marks = 0
        self.marked: Marked = {}

    def record(self, call: Callable) -> tuple[object, Captured]:
        self._records, self._num_marks, self.marked = True, 0, {}
        try:
            return super().record(call)
        finally:
            self._records = False

    def launched(self, launch: Launch) -> None:
        super().launched(launch)
        self.marked[self._mark] = launch

    def helped(self, helper: HelperOp) -> None:
        super().helped(helper)
        self.marked[self._mark] = helper

    def around_helper(self) -> AbstractContextManager:
        return self._next_mark()

    def launch(self, recorder: Recorder, launcher: Callable, arguments: tuple) -> None:
        if not self._records:
            launcher(*arguments)
            return
        with self._next_mark():
            launcher(*arguments)
        recorder(*arguments)

    def _next_mark(self) -> AbstractContextManager:
        """What is written down next ran under it; an operation that moves nothing leaves its mark unused."""
        self._mark = f"launch {self._num_marks}"
        self._num_marks += 1
        return record_function(MARK + self._mark)


@contextmanager
def watch_launches() -> Iterator[LiveSession]:
    """Kernels that are launched for the first time in this context report to the session ever after."""
    session = LiveSession()
    driver = triton.runtime.driver.active
    make_launcher = driver.launcher_cls

    def make_watched(source, metadata):
        launcher = make_launcher(source, metadata)
        recorder = Recorder(session, source, metadata, driver.get_current_device())
        return lambda *arguments: session.launch(recorder, launcher, arguments)

    with mock.patch.object(driver, "launcher_cls", make_watched):
        yield session
