"""One JSON line for each finished run, with what is needed to judge and to repeat it."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FILE_NAME = "records.jsonl"


def append(folder: Path, record: dict) -> None:
    """Add one line to the folder's records, on disk when this returns. Half a line that a kill left is removed."""
    path = folder / FILE_NAME
    line = (json.dumps(_finite(record), allow_nan=False) + "\n").encode()
    with path.open("a+b") as file:
        whole = _whole_lines(file.seek(0) or file.read())
        file.truncate(whole)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[dict]:
    """All records of a folder, none if there is no file. The half line of a killed run is passed over, with a warning.

    Raises:
        ValueError: a line that is not a record.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = _whole_lines(content)
    if whole < len(content):
        warnings.warn(f"{path}: the last line was cut off while it was written and is passed over; its run is repeated")
    return [_parse(path, number, line) for number, line in enumerate(content[:whole].splitlines(), start=1)]


def environment(device: "torch.device", seed: int) -> dict:
    """Where and with what a run was made."""
    import torch  # here, so that a report, which only reads, does without it

    return {
        "machine": {
            "cpu": _cpu_name(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "os": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": version_of("triton"),
            "subquad": version_of("subquad"),
        },
        "commit": COMMIT,
        "seed": seed,
        "command": command(),
    }


def command() -> list[str]:
    """What this process was started with, without folders of this machine."""
    return [Path(sys.argv[0]).name, *(_without_folder(part) for part in sys.argv[1:])]


def _without_folder(part: str) -> str:
    """Records are for others to read: of an absolute path only its last part is their business."""
    option, equals, value = part.rpartition("=")  # --out=PATH
    path = Path(value)
    return f"{option}{equals}{path.name}" if path.is_absolute() else part


def _whole_lines(content: bytes) -> int:
    """Bytes up to and with the last newline."""
    return content.rfind(b"\n") + 1


def _parse(path: Path, number: int, line: bytes) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{path}: line {number} is not a record, expected one JSON object, got {line[:60]!r} ({error}); "
            "remove the line or the file"
        ) from None
    if not isinstance(record, dict) or "kind" not in record:
        raise ValueError(f"{path}: line {number} is not a record, expected an object with a 'kind', got {line[:60]!r}")
    return record


def _finite(value):
    """JSON knows no infinity and no NaN: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def version_of(package: str) -> str | None:
    """The installed version of a distribution, None without one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), platform.machine())


def _commit(folder: Path) -> str | None:
    """The commit of this source, with "-dirty" behind it if files differ; None where the source is not under git."""
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    return commit and commit + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# Asked when the process has just read the source: a long run must not name a commit that was made while it ran.
COMMIT = _commit(Path(__file__).resolve().parent)
