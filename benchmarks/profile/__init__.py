"""`subquad profile`: every kernel of an op or a mixer, measured on the GPU at hand or modelled on one that is not."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from triton.errors import TritonError

from subquad.kernels import BackendError, _dispatch

from .. import records
from .calls import SEED, Call, Sizes, Subject, make_call, plan_subject
from .capture import Session, pretend
from .device import find_device
from .here import measure_here
from .model import PassModel, model_pass
from .picture import draw_roofline, modelled_points
from .roof import roof_of
from .table import print_profile, record_of
from .targets import GPU, GPUS, find_gpu

__all__ = ["GPUS", "PassModel", "model_subject", "plan_subject", "run_profile"]

RESULTS = Path("runs/profile")


def run_profile(
    name: str,
    *,
    target: str | None = None,
    mixer: bool = False,
    sizes: Sizes | None = None,
    dtype: str = "bfloat16",
    out: Path | None = None,
) -> int:
    """Measure an op or a mixer and its baselines, or model it: print a table, draw a roofline, append a record.

    Args:
        name: of an op, or of a mixer if `mixer`.
        target: a key of GPUS to model, which need not be there; None measures on the GPU that is.
        mixer: two names are of an op and of a mixer; this tells which is meant.
        sizes: in place of `calls.OP_SIZES` or `calls.MIXER_SIZES`, by the letters of the op, e.g. {"b": 4, "t": 4096};
            options of the op's inputs or of the mixer as well, e.g. {"decay": "head"}.
        dtype: "float32", "float16" or "bfloat16".
        out: folder of records.jsonl, of the picture and of traces; runs/profile if None.

    Returns:
        The exit code 0.

    Raises:
        ValueError: an unknown name, target, dtype or size, a size that cannot be, no GPU to measure on, or a process
            whose kernels Triton interprets. BackendError: sizes that the kernels do not serve, or a kernel that does
            not compile.
    """
    gpu = target and find_gpu(target)
    subject = plan_subject(name, is_mixer=mixer, sizes=sizes or {}, dtype=dtype)
    if _dispatch.INTERPRET:
        raise ValueError("profile: TRITON_INTERPRET=1 turns the compiler off; unset it")
    folder = out or RESULTS
    if gpu:
        record, files = _model(subject, target, gpu, folder)
    else:
        record, files = measure_here(subject, find_device(), folder)
    records.append(folder, record)
    print(f"added a record to {folder / records.FILE_NAME}")
    for file in files:
        print(f"wrote {file}")
    return 0


def _model(subject: Subject, target: str, gpu: GPU, folder: Path) -> tuple[dict, list[Path]]:
    # A process of its own: Triton takes it for one with such a GPU from then on, and tables that ops keep are fake.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        passes = pool.submit(model_subject, subject, gpu).result()
    folder.mkdir(parents=True, exist_ok=True)
    print_profile(subject, gpu, passes)
    picture = folder / f"{subject.name}_{target}.png"
    title = f"{subject.label}\non {gpu.name}: a model, each point at its lower bound of the time"
    draw_roofline(modelled_points(subject, passes), roof_of(gpu), title, picture)
    record = record_of(subject, target, gpu, passes)
    return record | {"environment": records.environment(torch.device("cpu"), seed=SEED)}, [picture]


def model_subject(subject: Subject, gpu: GPU) -> list[PassModel]:
    """The passes of a subject, modelled in this process."""
    with pretend(gpu) as session:
        call = make_call(subject)
        try:
            record_passes(session, call)  # what is made once and kept, as tables of a transform, is not part of a call
            passes = record_passes(session, call)
        except BackendError:
            raise
        except (TritonError, RuntimeError) as error:
            raise BackendError(f"profile: {subject.label} does not compile for {gpu.name}: {error}") from None
    return [model_pass(name, captured, compulsory, gpu) for name, captured, compulsory in passes]


def record_passes(session: Session, call: Call) -> list[tuple]:
    """(name, what it launched, compulsory bytes) of every pass."""
    outputs, forward = session.record(call.forward)
    passes = [("forward", forward, call.forward_bytes(outputs))]
    if call.leaves:
        y = outputs[0]  # in training nothing flows back through the last state
        dy = torch.empty_like(y)
        grads, backward = session.record(lambda: torch.autograd.grad(y, call.leaves, dy, allow_unused=True))
        passes.append(("backward", backward, call.backward_bytes(dy, grads)))
    return passes
