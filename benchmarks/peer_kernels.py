"""Our kernels beside the published ones, all read with the same instrument in the same run; nothing is run or timed.

`python -m subquad.benchmarks.peer_kernels` captures what a training step of each op launches, ours and that of every
form of flash-linear-attention that computes the same, compiles it for the targets and writes a table and a record.
"""

import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from subquad.kernels import _dispatch

from . import records
from .profile import record_passes
from .profile.baselines import BASELINES, FLA
from .profile.calls import Call, Subject, make_call
from .profile.capture import Session, pretend
from .profile.foreign import CONFIGS_TRIED, foreign_code
from .profile.model import PassModel, model_pass
from .profile.targets import GPUS, find_gpu

RESULTS = Path(__file__).parent / "results"
RECORD, TABLE = "peer_kernels.jsonl", "peer_kernels.md"
COMMAND = "python -m subquad.benchmarks.peer_kernels"
TARGETS, DIMS = ("h100", "a100"), (64, 128)
DTYPE = "bfloat16"
OURS = "subquad"
PEERS = ("flash-linear-attention", "fla-core")
HEADS = dict(b=4, t=4096, h=16)
HEAD = ("op", "D", "target", "form", "pass", "kernels", "helpers", "MB", "compulsory MB", "x", "spill", "bound, us")

INTRODUCTION = f"""# Our kernels beside the published ones, without a GPU

Made by `{COMMAND}`; `{RECORD}` beside this file holds the same numbers and each kernel's.
Every kernel that a training step launches, b=4, t=4096, h=16, head dim D (convolutions: 16 D channels), {DTYPE}, was
compiled for the target and read: nothing was run, so nothing here is a time.

Kernels, helpers: launches of Triton kernels and operations of PyTorch around them. MB: what must cross device memory,
each tensor of a launch or of a helper once in each direction. Compulsory: inputs and outputs once (backward: inputs,
the output's gradient, gradients), the same for all forms of one call. x: MB over compulsory. Spill: bytes a thread
stores and loads for want of registers, the worst kernel's. Bound: lower bound of the time in the model of
`subquad profile`. Which configuration a peer's autotuner would choose on the device is not known: of up to
{CONFIGS_TRIED} evenly spaced ones the best by bytes, spills and resident warps is taken. The long convolution beside
ours is PyTorch's FFT in float32, counted operation by operation.
"""


@dataclass(frozen=True)
class Row:
    """One pass of one form of an op. Sizes in bytes; `missing` says how to install a form that is not there."""

    op: str
    variant: str
    dim: int
    target: str
    form: str
    pass_name: str
    kernels: int = 0
    helpers: int = 0
    moved: int = 0
    compulsory: int = 0
    spill: int = 0
    microseconds: float = 0.0
    by_kernel: dict[str, list] | None = None
    missing: str = ""


def subjects(dim: int) -> list[tuple[str, Subject]]:
    """(what is special, call) for each op; as the ops of the peers have it."""
    square = dict(HEADS, k=dim, v=dim)
    channels = dict(b=4, t=4096, d=16 * dim)
    calls = [
        ("", "causal_attention", square),
        ("no decay", "linear_attention", square),
        ("decay a head", "linear_attention", dict(square, decay="head")),
        ("decay a channel", "linear_attention", dict(square, decay="channel")),
        ("16 features", "polynomial_attention", dict(square, k=16)),
        ("no decay", "delta_rule", square),
        ("decay a head", "delta_rule", dict(square, decay="head")),
        ("decay a channel", "delta_rule", dict(square, decay="channel")),
        ("", "generalized_delta_rule", square),
        ("16 states", "selective_scan", dict(channels, m=16)),
        ("", "linear_recurrence", channels),
        ("width 4", "short_conv", dict(channels, w=4, activation="silu")),
        ("gated", "long_conv", dict(channels, l=4096)),
    ]
    return [(variant, Subject(op, False, sizes, DTYPE)) for variant, op, sizes in calls]


def main(targets: Sequence[str] = TARGETS, dims: Sequence[int] = DIMS, folder: Path = RESULTS) -> int:
    """Capture everything and write both files. A run that was stopped goes on where it was.

    Raises:
        ValueError: a target that is unknown or not NVIDIA's, or a process whose kernels Triton interprets.
    """
    for target in targets:
        if not find_gpu(target).compiled_for.startswith("cuda"):
            raise ValueError(f"peer_kernels: peers are told of an NVIDIA GPU; expected such a target, got {target!r}")
    if _dispatch.INTERPRET:
        raise ValueError("peer_kernels: TRITON_INTERPRET=1 turns the compiler off; unset it")
    parts = [
        (variant, subject, dim, target) for target in targets for dim in dims for variant, subject in subjects(dim)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f"{RECORD}.half"
    head = json.dumps({
        "kind": "peer_kernels", "measured": False, "peers": {name: records.version_of(name) for name in PEERS},
        "environment": records.environment(torch.device("cpu"), seed=0),
    })  # fmt: skip
    done = _lines_after(head, half)
    if not done:
        half.write_text(head + "\n")
    context = multiprocessing.get_context("spawn")
    # A process for each part: Triton takes it for one with such a GPU, and peers keep what they were told of it.
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as pool, half.open("a") as file:
        left = parts[len(done) :]
        for part, rows in zip(left, pool.map(capture_part, *zip(*left, strict=True)), strict=True):
            file.write(json.dumps([asdict(row) for row in rows]) + "\n")
            file.flush()
            print(f"captured {part[1].name} {part[0]}, D={part[2]}, {part[3]}", file=sys.stderr, flush=True)
    half.replace(folder / RECORD)
    (folder / TABLE).write_text(document((folder / RECORD).read_text().splitlines()))
    print(f"wrote {folder / TABLE}")
    return 0


def _lines_after(head: str, half: Path) -> list[str]:
    """Parts of a run that was stopped, if it was of the same sources and versions; a torn last line is not one."""
    lines = half.read_text().splitlines(keepends=True) if half.exists() else []
    if not lines or lines[0] != head + "\n":
        return []
    whole = [line for line in lines if line.endswith("\n")]
    half.write_text("".join(whole))
    return whole[1:]


def capture_part(variant: str, subject: Subject, dim: int, target: str) -> list[Row]:
    """Rows of ours and of all comparable peers for one call, in this process."""
    gpu = GPUS[target]
    names = dict(op=subject.name, variant=variant, dim=dim, target=target)
    with pretend(gpu) as session:
        call = make_call(subject)
        passes = _passes(session, call)
        compulsory = {name: count for name, _, count in passes}
        captured = {OURS: passes}
        missing = []
        with foreign_code(session, gpu):
            for peer in BASELINES[subject.name]:
                if not (peer.install == FLA or subject.name == "long_conv") or peer.refusal(call.inputs):
                    continue
                if not peer.is_installed:
                    missing.append(Row(**names, form=peer.name, pass_name="", missing=peer.install))
                    continue
                run, leaves = peer.prepare(call.inputs, needs_grad=True)
                captured[peer.name] = _passes(session, Call(lambda run=run: (run(),), call.inputs, leaves))
    rows = [
        _row(model_pass(name, launched, compulsory[name], gpu), form=form, **names)
        for form, passes in captured.items()
        for name, launched, _ in passes
    ]
    return rows + missing


def _passes(session: Session, call: Call) -> list[tuple]:
    """Of the second call: in the first one tables are made and autotuners choose."""
    record_passes(session, call)
    return record_passes(session, call)


def _row(one: PassModel, **names) -> Row:
    return Row(
        **names,
        pass_name=one.name,
        kernels=one.launches,
        helpers=one.helper_count,
        moved=one.device_bytes + one.helper_bytes,
        compulsory=one.compulsory_bytes,
        spill=max((kernel.facts.spill for kernel in one.kernels), default=0),
        microseconds=round(one.microseconds, 1),
        by_kernel={kernel.name: [kernel.launches, kernel.device_bytes, kernel.facts.spill] for kernel in one.kernels},
    )


def document(lines: Sequence[str]) -> str:
    """The readable table of a record: its head, then the rows of each part."""
    head, *parts = map(json.loads, lines)
    peers = ", ".join(f"{name} {version or 'not installed'}" for name, version in head["peers"].items())
    written = [INTRODUCTION, f"{peers}; Triton {head['environment']['versions']['triton']}.\n"]
    rows = [_cells(Row(**row)) for part in parts for row in part]
    written += [f"| {' | '.join(line)} |" for line in (HEAD, ("---",) * len(HEAD), *rows)]
    return "\n".join(written) + "\n"


def _cells(row: Row) -> list[str]:
    name = f"{row.op}, {row.variant}" if row.variant else row.op
    form = f"**{row.form}**" if row.form == OURS else row.form
    cells = [name, str(row.dim), row.target, form]
    if row.missing:
        return [*cells, f"not installed: `{row.missing}`", *[""] * (len(HEAD) - 5)]
    megabytes = (f"{count / 1e6:.0f}" for count in (row.moved, row.compulsory))
    ratio = f"{row.moved / row.compulsory:.2f}"
    counts = (str(row.kernels), str(row.helpers))
    return [*cells, row.pass_name, *counts, *megabytes, ratio, str(row.spill), f"{row.microseconds:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
