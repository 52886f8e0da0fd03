"""What a stored budget was made of, as a hash: the code of an op's kernels, of their configurations, and the call."""

import ast
import hashlib
import importlib
import json
from functools import cache
from pathlib import Path

import subquad.kernels

from .cases import Case

CONFIGURATIONS = "_configs.py"


def fingerprint(case: Case) -> str:
    """Of the sources of a case and of its sizes. A comment or a docstring does not change it."""
    return _hash(f"{_hash_of_kernels(case.op)} {json.dumps(case.sizes, sort_keys=True)}")


@cache
def _hash_of_kernels(op: str) -> str:
    return _hash("\n".join(_code(path) for path in kernel_sources(op)))


def kernel_sources(op: str) -> list[Path]:
    """The op's Triton files, and of the files that all ops share those that import Triton or choose configurations."""
    shared = Path(subquad.kernels.__file__).parent
    folder = Path(importlib.import_module(f"subquad.kernels.{op}").__file__).parent
    own = [path for path in sorted(folder.rglob("*.py")) if "_triton" in path.relative_to(folder).as_posix()]
    return own + [path for path in sorted(shared.glob("*.py")) if path.name == CONFIGURATIONS or _imports_triton(path)]


def _imports_triton(path: Path) -> bool:
    nodes = ast.parse(path.read_text()).body
    return any(isinstance(node, ast.Import) and any(x.name.startswith("triton") for x in node.names) for node in nodes)


def _code(path: Path) -> str:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body.pop(0)
    return ast.dump(tree)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
