"""The GPU at hand, as far as a profile needs it: a clock, its memory, a trace of its kernels, its roof.

Everything that only a GPU can do is here, so that the rest runs on any machine with a device that a test makes up.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..timing import CudaClock, peak_bytes
from .roof import Roof, find_roof
from .trace import MARK

TRACED = 21  # repetitions of a pass in a trace


class Device:
    """One GPU.

    Args:
        torch_device: where tensors go.
        cuda: `torch.cuda`, unless a test stands in for it.
    """

    def __init__(self, torch_device: torch.device, cuda=torch.cuda):
        self.torch_device = torch_device
        self.clock = CudaClock(torch_device, cuda)
        self._cuda = cuda
        self._properties = cuda.get_device_properties(torch_device)

    @property
    def total_bytes(self) -> int:
        return self._properties.total_memory

    def roof(self) -> Roof:
        return find_roof(self._properties)

    def peak_bytes(self, run: Callable[[], object]) -> int:
        """Most memory that `run` takes above what was taken before it."""
        return peak_bytes(run, self.torch_device, self._cuda)

    def forget(self) -> None:
        """Give memory that nothing holds back, as after a run that took too much."""
        self._cuda.empty_cache()

    def trace(self, passes: Mapping[str, Callable[[], object]], path: Path) -> None:
        """Run the passes in turns, each under its mark and with an emptied L2 cache, and write what ran to `path`."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(TRACED):
                for name, run in passes.items():
                    self.clock.flushed.zero_()
                    with record_function(MARK + name):
                        run()
            self._cuda.synchronize(self.torch_device)
        profiler.export_chrome_trace(str(path))


def find_device() -> Device:
    """The current GPU.

    Raises:
        ValueError: there is none.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            "profile: PyTorch sees no GPU here, so nothing can be measured; give --target for a model of one that need "
            "not be there"
        )
    return Device(torch.device("cuda", torch.cuda.current_device()))
