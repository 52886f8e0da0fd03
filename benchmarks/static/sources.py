"""What a stored row was made of: the code of the op's kernels and the call, as a hash, and the configurations."""

import ast
import hashlib
import importlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from subquad.kernels import _target
from subquad.kernels._configs import TABLES, Asked

from .._without_device import TARGETS
from ..profile.targets import GPUS
from .cases import Case
from .rows import Row

CONFIGURATIONS = "_configs.py"  # tables; what a call took from them is compared instead


def fingerprint(case: Case) -> str:
    """Of the sources of a case and of its sizes. A comment or a docstring does not change it."""
    return _hash(f"{_hash_of_kernels(case.op)} {json.dumps(case.sizes, sort_keys=True)}")


def is_current(row: Row, case: Case) -> bool:
    """Whether compiling the case for the row's target would begin from what the row was made of."""
    importlib.import_module(f"subquad.kernels.{case.op}._triton")  # fills TABLES
    architecture = _target.family_of(TARGETS[GPUS[row.target].compiled_for])
    asked = {text: Asked.read(text) for text in row.configs}
    return row.source == fingerprint(case) and all(
        x.name in TABLES and TABLES[x.name].row(architecture, x.dtype, x.width) == row.configs[text]
        for text, x in asked.items()
    )


@cache
def _hash_of_kernels(op: str) -> str:
    """The same wherever the files lie: a move changes no kernel."""
    return _hash(" ".join(sorted(_hash(_code(path)) for path in kernel_sources(op))))


def kernel_sources(op: str) -> list[Path]:
    """The op's Triton files but its tables, and what these import of our files that import Triton themselves."""
    folder = Path(importlib.import_module(f"subquad.kernels.{op}").__file__).parent
    waiting = [path for path in sorted(folder.rglob("*.py")) if "_triton" in path.relative_to(folder).as_posix()]
    found = []
    while waiting:
        path = waiting.pop(0)
        found.append(path)
        waiting += [other for other in _imports(path) if other not in (*found, *waiting) and _imports_triton(other)]
    return [path for path in found if path.name != CONFIGURATIONS]


def _imports(path: Path) -> Iterator[Path]:
    """Our own files that the file imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            place = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            modules = [place.with_suffix(".py"), *(place / f"{name.name}.py" for name in node.names)]
            yield from (module for module in modules if module.exists())


def _imports_triton(path: Path) -> bool:
    nodes = ast.parse(path.read_text()).body
    return any(isinstance(node, ast.Import) and any(x.name.startswith("triton") for x in node.names) for node in nodes)


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and node.level)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body.pop(0)
    return ast.dump(tree)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
