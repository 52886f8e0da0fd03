"""Where a Triton is: the one that is installed, one that lies in a folder, or a version that pip puts into a cache."""

import importlib.metadata
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

NEWEST = "3.9.0"  # the newest Triton that the kernels are compiled with, beside the installed one
CACHE = Path.home() / ".cache" / "subquad" / "triton"
_VERSION = re.compile(r"\d+(\.\w+)+")


@dataclass(frozen=True)
class Triton:
    """A version, and the folder that a process must look in first; None for the installed one."""

    version: str
    folder: Path | None = None


def installed() -> Triton:
    return Triton(importlib.metadata.version("triton"))


def find_triton(name: str, cache: Path = CACHE) -> Triton:
    """The Triton of a version, which is installed into `cache` where it is not yet, or the one in a folder.

    Raises:
        ValueError: a folder without Triton, or a version that pip cannot install.
    """
    if name == installed().version:
        return installed()
    if Path(name).is_dir():
        return Triton(_version_in(Path(name)), Path(name).resolve())
    if not _VERSION.fullmatch(name):
        raise ValueError(
            f"check: --triton must be a version such as {NEWEST} or a folder that holds Triton, got {name!r}"
        )
    folder = cache / name
    if not folder.exists():
        _install(name, folder)
    return Triton(_version_in(folder), folder)


def _version_in(folder: Path) -> str:
    found = [x.version for x in importlib.metadata.distributions(name="triton", path=[str(folder)])]
    if not found or not (folder / "triton").is_dir():
        raise ValueError(
            f"check: no Triton in {folder}: expected the packages triton and triton-*.dist-info there; "
            f"make it with: pip install --no-deps --target {folder} triton=={NEWEST}"
        )
    return found[0]


def _install(version: str, folder: Path) -> None:
    """Whole or not at all: into a folder beside it that is then renamed."""
    print(f"installing Triton {version} into {folder}, once; it is used for this check alone", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as half:
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", half, f"triton=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr or done.stdout).strip().splitlines()[-1]
            raise ValueError(
                f"check: Triton {version} could not be installed: {reason}; "
                "install it by hand into a folder and name that: --triton FOLDER"
            )
        Path(half).rename(folder)
        Path(half).mkdir()  # for the context to remove
