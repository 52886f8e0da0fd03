"""The process that compiles: all calls of an op for one target, one after the other, each written down when done.

Triton takes this process for one with such a GPU, and nothing that it has compiled is compiled again.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import triton
from triton.errors import TritonError

from subquad.kernels import BackendError, _target
from subquad.kernels._configs import Asked, Config, ConfigTable, recorded

from ..profile import record_passes
from ..profile.calls import make_call
from ..profile.capture import Captured, Session, pretend
from ..profile.kernel_facts import read_needs
from ..profile.model import launch_traffic
from ..profile.targets import GPUS
from .cases import Case
from .rows import Row, row_of
from .sources import fingerprint

FAILURES = (TritonError, RuntimeError, BackendError)


def main() -> None:
    """Compile the cases that standard input lists; the row of each becomes a line of the file."""
    target, file = sys.argv[1], Path(sys.argv[2])
    cases = [Case(**case) for case in json.load(sys.stdin)]
    compile_cases(cases, target, file)


def compile_cases(cases: list[Case], target: str, file: Path) -> None:
    """Append a line for each case; the first line of the file is written as soon as Triton is there."""
    with file.open("a") as lines, pretend(GPUS[target]) as session:
        print(json.dumps({"triton": triton.__version__}), file=lines, flush=True)
        for case in cases:
            print(json.dumps(asdict(compile_case(session, case, target))), file=lines, flush=True)


def compile_case(session: Session, case: Case, target: str) -> Row:
    """What a call compiles to and moves; if it does not compile, why and which kernel."""
    asked = []

    def note(*, fn, **_) -> bool:
        asked.append(fn.name.rpartition(".")[2])
        return False  # Triton goes on

    row = Row(case.op, case.label, case.width, case.dtype, target, triton.__version__, fingerprint(case))
    try:
        with recorded() as tables, triton.knobs.runtime.scope():
            triton.knobs.runtime.jit_cache_hook = note
            call = make_call(case.subject)
            record_passes(session, call)  # what is made once and kept is not part of a call
            passes = record_passes(session, call)
    except FAILURES as error:
        session.forget_log()
        where = f"{asked[-1]}: " if asked else ""
        found = f"{where}{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}"
        return replace(row, configs=configs_of(tables), error=found)
    gpu = GPUS[target]
    kernels = {launch.kernel.hash: launch for _, captured, _ in passes for launch in captured.launches}
    return row_of(
        replace(row, configs=configs_of(tables)),
        [(launch.name, read_needs(launch.kernel, launch.log, gpu)) for launch in kernels.values()],
        {name: traffic_ratio(captured, compulsory) for name, captured, compulsory in passes},
    )


def configs_of(tables: dict[Asked, ConfigTable]) -> dict[str, Config]:
    """How kernels that asked this were launched."""
    architecture = _target.architecture()
    return {str(asked): table.row(architecture, asked.dtype, asked.width) for asked, table in tables.items()}


def traffic_ratio(captured: Captured, compulsory: int) -> float | None:
    """Bytes that cross device memory over those that must; None where they depend on values in memory."""
    moved = sum(helper.bytes for helper in captured.helpers)
    for launch in captured.launches:
        traffic, _ = launch_traffic(launch)
        if traffic is None:
            return None
        moved += traffic.device_bytes(launch.tensors)
    return round(moved / compulsory, 4)


if __name__ == "__main__":
    main()
