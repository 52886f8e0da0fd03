"""Cases compiled in processes of their own, each with the target and the Triton that it is told."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from .cases import Case
from .rows import Row
from .sources import fingerprint
from .tritons import Triton

# The folder comes first before anything imports Triton; "-m" would import our own packages, and Triton, before that.
PROGRAM = """
import sys
folder = sys.argv.pop(1)
if folder:
    sys.path.insert(0, folder)
from subquad.benchmarks.static.part import main
main()
"""


@dataclass(frozen=True)
class Part:
    """What one process compiles: cases of an op for a target, of one dtype."""

    op: str
    target: str
    triton: Triton
    cases: tuple[Case, ...]

    @property
    def label(self) -> str:
        return f"{self.op} for {self.target}, {self.cases[0].dtype}, Triton {self.triton.version}"


def compile_parts(parts: Sequence[Part], processes: int, on_part: Callable[[Part, list[Row]], None]) -> None:
    """Compile the parts, some at the same time; `on_part` gets the rows of each as soon as it is done."""
    with ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(compile_part, part): part for part in parts}
        try:
            for future in as_completed(futures):
                on_part(futures[future], future.result())
        finally:
            pool.shutdown(cancel_futures=True)


def compile_part(part: Part) -> list[Row]:
    """A row for each case. A compiler that takes its process down fails one case; another process goes on behind it."""
    rows = []
    while len(rows) < len(part.cases):
        left = part.cases[len(rows) :]
        found, failure = _run(part, left)
        rows += found
        if failure is not None and len(found) < len(left):
            rows.append(_failed(left[len(found)], part, failure))
    return rows


def _run(part: Part, cases: Sequence[Case]) -> tuple[list[Row], str | None]:
    """(rows of the cases that were compiled, why the process ended before the others)."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-c", PROGRAM, str(part.triton.folder or ""), part.target, str(file)]
        done = subprocess.run(
            command, input=json.dumps([asdict(case) for case in cases]), capture_output=True, text=True, check=False
        )
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if not lines or lines[0] != {"triton": part.triton.version}:
        raise RuntimeError(f"check: {part.label}: the compiling process did not start (exit {done.returncode}): {last}")
    failure = f"the compiling process ended with exit code {done.returncode}: {last}" if done.returncode else None
    return [Row(**line) for line in lines[1:]], failure


def _failed(case: Case, part: Part, failure: str) -> Row:
    return Row(
        case.op, case.label, case.width, case.dtype, part.target, part.triton.version, fingerprint(case),
        error=failure[:300],
    )  # fmt: skip
