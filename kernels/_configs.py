"""How kernels are launched: a table for each, by architecture, dtype and width, that `subquad tune` may refine.

Nothing is tuned on a user's first call: a table has a row for every GPU, chosen by what its machine code looks like.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
import triton

from . import _target

Config = dict[str, int]  # keywords of a launch: sizes of tiles, num_warps, num_stages, maxnreg
Row = tuple[str, str, int]  # architecture, kind of dtype, largest width that it serves

TUNED = Path(os.path.expanduser("~/.cache/subquad/tuned.json"))  # Path.home() would raise for a user without a home


@dataclass(frozen=True)
class Asked:
    """What a kernel asks its table for."""

    name: str
    dtype: torch.dtype
    width: int

    def __str__(self) -> str:
        return f"{self.name}, {str(self.dtype).removeprefix('torch.')}, {self.width}"

    @classmethod
    def read(cls, text: str) -> "Asked":
        """From what `str` gave."""
        name, dtype, width = text.rsplit(", ", 2)
        return cls(name, getattr(torch, dtype), int(width))


@dataclass(frozen=True)
class Tuned:
    """What `subquad tune` found on a GPU.

    config: it was faster than
    instead_of: the table's row, by
    ratio: its time over that of the row's, under
    triton: this version.
    """

    config: Config
    instead_of: Config
    ratio: float
    triton: str


TABLES: dict[str, "ConfigTable"] = {}  # by name, those of the kernels that have been imported


class ConfigTable:
    """The configurations of one kernel.

    name: by which a tuned configuration is stored: that of the kernel, and of its form if several have their own.
    rows: by (architecture, kind, width). A kind is the name of a dtype, or "half" for bfloat16 and float16. The row of
        the smallest width that is not below the one asked for is taken; "cuda" and "hip" serve the GPUs that have no
        row of their own, so their rows must fit the smallest of them.
    choices: values that `subquad tune` may try for some of the keywords.
    """

    def __init__(self, name: str, rows: Mapping[Row, Config], choices: Mapping[str, tuple[int, ...]]):
        self.name, self.rows, self.choices = name, rows, choices
        self._found: dict[tuple, Config] = {}
        TABLES[name] = self

    def pick(self, dtype: torch.dtype, width: int) -> Config:
        """The configuration for this GPU: what is forced, else what was tuned here, else the table's."""
        asked = Asked(self.name, dtype, width)
        for seen in _recorders:
            seen[asked] = self
        for wanted in (asked, self.name):
            if wanted in _forced:
                return _forced[wanted]
        key = (_target.gpu_name(), _target.architecture(), dtype, width)
        if key not in self._found:
            self._found[key] = self._tuned(asked) or self.row(_target.architecture(), dtype, width)
        return self._found[key]

    def row(self, architecture: str, dtype: torch.dtype, width: int) -> Config:
        """What the table says."""
        name = str(dtype).removeprefix("torch.")
        kinds = (name,) if dtype == torch.float32 else (name, "half")
        for family in (architecture, _target.maker_of(architecture)):
            for kind in kinds:
                widths = [known for where, what, known in self.rows if (where, what) == (family, kind)]
                fitting = [known for known in widths if known >= width]
                if fitting:
                    return self.rows[family, kind, min(fitting)]
        raise AssertionError(f"{self.name}: no row for {architecture}, {dtype}, width {width}")

    def offers(self, config: Config) -> bool:
        """Whether tuning may arrive at it: every value is a choice or stands in a row, under the same keyword."""
        known = {(keyword, value) for row in self.rows.values() for keyword, value in row.items()}
        known |= {(keyword, value) for keyword, values in self.choices.items() for value in values}
        return known.issuperset(config.items())

    def forget(self) -> None:
        """Read anew what was tuned."""
        self._found.clear()

    def _tuned(self, asked: Asked) -> Config | None:
        """A configuration tuned with another Triton, or in place of another row, is out of date: it is passed over."""
        gpu = _target.gpu_name()
        found = read_tuned().get(gpu, {}).get(str(asked)) if gpu else None
        row = self.row(_target.architecture(), asked.dtype, asked.width)
        if found is None or (found.triton, found.instead_of) != (triton.__version__, row):
            return None
        return found.config if self.offers(found.config) else None


_forced: dict[Asked | str, Config] = {}
_recorders: list[dict[Asked, ConfigTable]] = []


@contextmanager
def forced(what: Asked | str, config: Config) -> Iterator[None]:
    """Inside, the table of that name gives this configuration, if only for what is asked: for measuring and tests."""
    before = dict(_forced)
    _forced[what] = config
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@contextmanager
def recorded() -> Iterator[dict[Asked, ConfigTable]]:
    """Collects what kernels ask inside, in order. Also from autograd's own threads, so it is the process's."""
    seen: dict[Asked, ConfigTable] = {}
    _recorders.append(seen)
    try:
        yield seen
    finally:
        _recorders.remove(seen)


def read_tuned() -> dict[str, dict[str, Tuned]]:
    """What is stored, by the name of a GPU and the text of what is asked. The file is read once in a process.

    Raises:
        RuntimeError: the file is not one that `subquad tune` wrote.
    """
    return _read(TUNED)


def store_tuned(gpu: str, asked: Asked, tuned: Tuned) -> None:
    """Keep one configuration, on disk when this returns. Other processes may store theirs at the same time."""
    with _locked():
        everything = read_tuned()
        _write(everything | {gpu: everything.get(gpu, {}) | {str(asked): tuned}})


def forget_tuned(gpu: str) -> int:
    """Remove what is stored for a GPU; say how many configurations that were."""
    with _locked():
        everything = dict(read_tuned())
        gone = everything.pop(gpu, {})
        _write(everything)
    return len(gone)


@cache
def _read(path: Path) -> dict[str, dict[str, Tuned]]:
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text())
        return {gpu: {asked: Tuned(**tuned) for asked, tuned in rows.items()} for gpu, rows in stored.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise RuntimeError(
            f"{path}: not what `subquad tune` writes, expected JSON of tuned configurations ({error}); remove the file"
        ) from None


def _write(everything: dict[str, dict[str, Tuned]]) -> None:
    """Whole or not at all: a reader sees the file as it was or as it is, also if this process is killed."""
    plain = {gpu: {asked: asdict(tuned) for asked, tuned in rows.items()} for gpu, rows in everything.items()}
    with tempfile.NamedTemporaryFile("w", dir=TUNED.parent, prefix=TUNED.name, delete=False) as file:
        json.dump(plain, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, TUNED)
    _read.cache_clear()


@contextmanager
def _locked() -> Iterator[None]:
    """One process at a time reads and writes: none loses what another has just stored."""
    import fcntl  # not on Windows, where reading alone is needed

    TUNED.parent.mkdir(parents=True, exist_ok=True)
    with TUNED.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _read.cache_clear()
        yield
