"""`subquad profile` without a GPU: what each kernel compiles to and moves, and a lower bound of its time."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from triton.errors import TritonError

from subquad.kernels import BackendError, _dispatch

from .. import records
from .calls import Call, Sizes, Subject, make_call, plan_subject
from .capture import Session, pretend
from .model import PassModel, model_pass
from .table import print_profile, record_of
from .targets import GPU, GPUS, find_gpu

__all__ = ["GPUS", "PassModel", "model_subject", "plan_subject", "run_profile"]

RESULTS = Path("runs/profile")


def run_profile(
    name: str,
    *,
    target: str,
    mixer: bool = False,
    sizes: Sizes | None = None,
    dtype: str = "bfloat16",
    out: Path | None = None,
) -> int:
    """Model an op or a mixer on a GPU that need not be there: print a table and append a record.

    Args:
        name: of an op, or of a mixer if `mixer`.
        target: a key of GPUS.
        mixer: two names are of an op and of a mixer; this tells which is meant.
        sizes: in place of `calls.OP_SIZES` or `calls.MIXER_SIZES`, by the letters of the op, e.g. {"b": 4, "t": 4096};
            options of the op's inputs or of the mixer as well, e.g. {"decay": "head"}.
        dtype: "float32", "float16" or "bfloat16".
        out: folder of records.jsonl; runs/profile if None.

    Returns:
        The exit code 0.

    Raises:
        ValueError: an unknown name, target, dtype or size, a size that cannot be, or a process whose kernels Triton
            interprets. BackendError: sizes that the kernels do not serve, or a kernel that does not compile.
    """
    gpu = find_gpu(target)
    subject = plan_subject(name, is_mixer=mixer, sizes=sizes or {}, dtype=dtype)
    if _dispatch.INTERPRET:
        raise ValueError("profile: TRITON_INTERPRET=1 turns the compiler off; unset it")
    # A process of its own: Triton takes it for one with such a GPU from then on, and tables that ops keep are fake.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        passes = pool.submit(model_subject, subject, gpu).result()
    record = record_of(subject, target, gpu, passes)
    record["environment"] = records.environment(torch.device("cpu"), seed=0)
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    records.append(folder, record)
    print_profile(subject, gpu, passes)
    print(f"added a record to {folder / records.FILE_NAME}")
    return 0


def model_subject(subject: Subject, gpu: GPU) -> list[PassModel]:
    """The passes of a subject, modelled in this process."""
    with pretend(gpu) as session:
        call = make_call(subject)
        try:
            _record(session, call)  # what is made once and kept, as tables of a transform, is not part of a call
            passes = _record(session, call)
        except BackendError:
            raise
        except (TritonError, RuntimeError) as error:
            raise BackendError(f"profile: {subject.label} does not compile for {gpu.name}: {error}") from None
    return [model_pass(name, captured, compulsory, gpu) for name, captured, compulsory in passes]


def _record(session: Session, call: Call) -> list[tuple]:
    """(name, what it launched, compulsory bytes) of every pass."""
    outputs, forward = session.record(call.forward)
    passes = [("forward", forward, call.forward_bytes(outputs))]
    if call.leaves:
        y = outputs[0]  # in training nothing flows back through the last state
        dy = torch.empty_like(y)
        grads, backward = session.record(lambda: torch.autograd.grad(y, call.leaves, dy, allow_unused=True))
        passes.append(("backward", backward, call.backward_bytes(dy, grads)))
    return passes
