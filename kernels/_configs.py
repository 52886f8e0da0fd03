"""How kernels are launched: a table for each, by architecture, dtype and width, that `subquad tune` may refine.

Nothing is tuned on a user's first call: a table has a row for every GPU, chosen by what its machine code looks like.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from . import _target

Config = dict[str, int]  # keywords of a launch: sizes of tiles, num_warps, num_stages, maxnreg
Row = tuple[str, str, int]  # architecture, kind of dtype, largest width that it serves

TUNED = Path.home() / ".cache" / "subquad" / "tuned.json"
_forced: dict[str, Config] = {}


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

    def pick(self, dtype: torch.dtype, width: int) -> Config:
        """The configuration for this GPU: what is forced, else what was tuned here, else the table's."""
        if self.name in _forced:
            return _forced[self.name]
        key = (_target.architecture(), dtype, width)
        if key not in self._found:
            self._found[key] = self._tuned(dtype, width) or self.row(*key)
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

    def forget(self) -> None:
        """Read anew what was tuned."""
        self._found.clear()

    def _tuned(self, dtype: torch.dtype, width: int) -> Config | None:
        return tuned_here().get(tuned_key(self.name, dtype, width))


def tuned_key(name: str, dtype: torch.dtype, width: int) -> str:
    return f"{name}, {str(dtype).removeprefix('torch.')}, {width}"


def tuned_here() -> dict[str, Config]:
    """What `subquad tune` stored for the GPU of this process; nothing where there is none."""
    if _target.architecture() == _target.INTERPRETER or not torch.cuda.is_available():
        return {}
    return _read(TUNED).get(torch.cuda.get_device_name(), {})


@cache
def _read(path: Path) -> dict[str, dict[str, Config]]:
    return json.loads(path.read_text()) if path.exists() else {}


@contextmanager
def forced(name: str, config: Config) -> Iterator[None]:
    """Inside, the table of that name gives this configuration: for measuring and for tests."""
    before = dict(_forced)
    _forced[name] = config
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
