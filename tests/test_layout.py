"""The rules of the house that a machine can keep."""

import ast
from pathlib import Path

import subquad.kernels

ROOT = Path(__file__).parent.parent
RANK = {"kernels": 0, "mixers": 1, "benchmarks": 2, "subquad": 3}
SOURCES = [path for room in RANK for path in sorted((ROOT / room).rglob("*.py"))]
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "base", "misc", "legacy"}


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_rooms_import_only_downwards():
    for path in SOURCES:
        rank = RANK[path.relative_to(ROOT).parts[0]]
        for name in imports(path):
            assert name.split(".")[0] not in ("kernels", "mixers", "benchmarks"), f"{path}: write subquad.{name}"
            if name.startswith("subquad."):
                assert RANK.get(name.split(".")[1], 3) <= rank, f"{path} imports {name}, which is above it"


def test_every_op_has_its_five_rooms():
    for op in subquad.kernels.OPS:
        rooms = {path.stem for path in (ROOT / "kernels" / op).iterdir()}
        assert rooms >= {"__init__", "_reference", "_torch", "_triton", "_inputs"}, op


def test_no_file_is_too_long():
    everything = [*SOURCES, *(ROOT / "tests").rglob("*.py")]
    assert [path for path in everything if len(path.read_text().splitlines()) > 500] == []


def test_every_file_has_a_name_of_its_own():
    assert [path for path in SOURCES if path.stem in FORBIDDEN_NAMES] == []


def test_every_module_says_what_it_is():
    silent = [path for path in SOURCES if ast.get_docstring(ast.parse(path.read_text())) is None]
    assert silent == [ROOT / "subquad" / "__main__.py"] or silent == []


def test_nothing_is_caught_blindly():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                where = f"{path}:{node.lineno}"
                assert caught not in ("everything", "Exception", "BaseException"), f"{where} catches {caught}"


def test_no_environment_variable_is_read_but_tritons_own():
    for path in SOURCES:
        for line in path.read_text().splitlines():
            if "os.environ" in line or "getenv" in line:
                assert "TRITON_INTERPRET" in line, f"{path}: {line.strip()}"
