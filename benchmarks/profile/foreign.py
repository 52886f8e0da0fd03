"""Other people's Triton code on a GPU that is not there: it asks PyTorch for a device, and tunes itself by timing.

Both get an answer here. Which configuration an autotuner would take on the device nobody knows without one, so a few
are compiled, and the one that moves least, spills least and leaves room for most warps is taken.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import torch
from triton.compiler.errors import CompilationError
from triton.runtime.autotuner import Autotuner
from triton.runtime.errors import OutOfResources, PTXASError

from .capture import Launch, Session
from .kernel_facts import read_needs
from .model import launch_traffic, memory_microseconds, occupancy, product_microseconds
from .targets import GPU

CONFIGS_TRIED = 3  # of each autotuner, evenly spaced
NO_CHOICE = float("inf")
DOES_NOT_FIT = (OutOfResources, PTXASError, CompilationError)


@contextmanager
def foreign_code(session: Session, gpu: GPU) -> Iterator[None]:
    """Inside, torch.cuda answers for the GPU. To be entered before the code is imported, for it asks then."""
    with ExitStack() as stack:
        for name, answer in _answers(gpu).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        prune = Autotuner.prune_configs
        stack.enter_context(mock.patch.object(Autotuner, "prune_configs", lambda *args: _some(prune(*args))))
        stack.enter_context(mock.patch.object(Autotuner, "_bench", _modelled(session, gpu)))
        yield


def _answers(gpu: GPU) -> dict[str, object]:
    """What torch.cuda says of the GPU."""
    capability = divmod(int(gpu.compiled_for.removeprefix("cuda:")), 10)
    properties = types.SimpleNamespace(
        name=gpu.name, major=capability[0], minor=capability[1], multi_processor_count=gpu.num_multiprocessors,
        shared_memory_per_block_optin=gpu.block_shared_bytes, warp_size=gpu.warp_size,
        L2_cache_size=int(gpu.cache_mb * 1e6),
    )  # fmt: skip
    stream = types.SimpleNamespace(cuda_stream=0, device=0, wait_stream=lambda stream: None)
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: gpu.name,
        "get_device_properties": lambda device=None: properties,
        "current_stream": lambda device=None: stream,
        "device": lambda device=None: nullcontext(),
        "device_of": lambda x=None: nullcontext(),
        "_lazy_init": lambda: None,
    }


def _some(configs: list) -> list:
    """As many as are tried, the first and the last among them."""
    if len(configs) <= CONFIGS_TRIED:
        return configs
    return [configs[round(i * (len(configs) - 1) / (CONFIGS_TRIED - 1))] for i in range(CONFIGS_TRIED)]


def _modelled(session: Session, gpu: GPU) -> Callable[..., list[float]]:
    """What stands in for timing one configuration."""

    def bench(tuner: Autotuner, *args, config, **meta) -> list[float]:
        if config.pre_hook:
            config.pre_hook({**dict(zip(tuner.arg_names, args, strict=False)), **meta, **config.all_kwargs()})
        try:
            [launch] = session.aside(lambda: tuner.fn.run(*args, **{**meta, **config.all_kwargs()}))
        except DOES_NOT_FIT:
            session.forget_log()
            return [NO_CHOICE] * 3
        return [score(launch, gpu)] * 3

    return bench


def score(launch: Launch, gpu: GPU) -> float:
    """Smaller is better: the bound of bytes and products, longer by spills; of equals the one with more warps."""
    needs = read_needs(launch.kernel, launch.log, gpu)
    traffic, _ = launch_traffic(launch)
    bound = 0.0
    if traffic is not None:
        memory = memory_microseconds(traffic.device_bytes(launch.tensors), gpu)
        bound = max(memory, product_microseconds(traffic.flops, launch.num_programs, gpu))
    resident = occupancy(
        gpu, registers=needs.registers, shared=needs.shared, num_warps=launch.kernel.metadata.num_warps
    ).warps
    return bound * (1 + needs.spill / 100) + 1 / (1 + resident)
