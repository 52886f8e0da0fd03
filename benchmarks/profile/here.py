"""A measured profile from end to end: the table, the picture, the traces, and the record of it all."""

import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import torch

from .. import records
from .calls import SEED, Subject, make_call
from .device import Device
from .measure import measure_subject
from .measured_table import measured_record, print_measured
from .picture import draw_roofline, measured_points

PROTON = "triton.profiler"
PROTON_REPEATS = 20


def measure_here(subject: Subject, device: Device, folder: Path) -> tuple[dict, list[Path]]:
    """Measure, print and draw; (the record, the files that were written). Raises as `measure_subject` does."""
    torch.manual_seed(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    found = measure_subject(subject, device, folder)
    roof = device.roof()
    print_measured(subject, roof, found)
    picture = folder / f"{subject.name}.png"
    draw_roofline(measured_points(found), roof, f"{subject.label}\non {roof.name}: measured", picture)
    files = [picture, *(one.trace for one in found if one.trace)]
    tree, why_not = write_proton(subject, device, folder / f"{subject.name}_proton")
    if tree is None:
        print(f"Proton: {why_not}")
    else:
        files.append(tree)
    record = measured_record(subject, roof, found, [file.name for file in files])
    return record | {"environment": records.environment(device.torch_device, seed=SEED)}, files


def write_proton(subject: Subject, device: Device, path: Path) -> tuple[Path | None, str]:
    """Our passes once more under Triton's own profiler: (its file, which proton-viewer reads, "") or (None, why not).

    In a process of its own: PyTorch's profiler leaves its hold on the GPU's counters to none other in the same one.
    """
    if importlib.util.find_spec(PROTON) is None:
        return None, "not in this build of Triton"
    if device.torch_device.type != "cuda":
        return None, "needs a GPU"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(run_under_proton, subject, device.torch_device, path).result(), ""
        except (RuntimeError, OSError, ImportError, BrokenProcessPool) as error:
            return None, f"{type(error).__name__}: {error}"


def run_under_proton(subject: Subject, torch_device: torch.device, path: Path) -> Path:
    """In this process; `path` is the file without its ending."""
    from triton import profiler as proton

    call = make_call(subject, torch_device)
    call.forward()  # what compiles, and what is made once and kept, is not part of a call
    proton.start(str(path), hook="triton")
    for _ in range(PROTON_REPEATS):
        with proton.scope("forward"):
            y = call.forward()[0]
        if call.leaves:
            with proton.scope("backward"):
                torch.autograd.grad(y, call.leaves, torch.ones_like(y), allow_unused=True)
    proton.finalize()
    return path.with_name(path.name + ".hatchet")
