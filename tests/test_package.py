"""The package as a user gets it: a wheel installed in another folder, and a machine that lacks the extras."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXTRAS = ("triton", "rich", "tyro", "matplotlib", "plotly", "transformers", "flash_attn", "causal_conv1d")


def run(code: str, *, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess:
    """Python in a folder of its own; `path` is searched before the installed packages."""
    prologue = f"import sys; sys.path.insert(0, {str(path)!r})\n" if path else ""
    return subprocess.run([sys.executable, "-P", "-c", prologue + code], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built from a copy of this checkout, for two test processes may build, and unpacked elsewhere."""
    place = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, place / "source", ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = place.glob("subquad-*.whl")
    zipfile.ZipFile(wheel).extractall(place / "site")
    return place / "site"


def test_wheel_holds_every_source_file(installed):
    for room in ("kernels", "mixers", "benchmarks"):
        here = {path.relative_to(ROOT / room) for path in (ROOT / room).rglob("*.py")}
        there = {
            path.relative_to(installed / "subquad" / room) for path in (installed / "subquad" / room).rglob("*.py")
        }
        assert here == there
    assert (installed / "subquad" / "py.typed").exists()


def test_wheel_runs_in_another_folder(installed, tmp_path):
    code = (
        "import torch, subquad\n"
        "mixer = subquad.create('based', 32)\n"
        "print(subquad.__file__, mixer(torch.randn(1, 9, 32)).shape)"
    )
    result = run(code, cwd=tmp_path, path=installed)
    assert result.returncode == 0, result.stderr
    assert str(installed) in result.stdout and "[1, 9, 32]" in result.stdout


def test_import_needs_no_extra(tmp_path):
    code = (
        f"import sys\nfor name in {EXTRAS!r}: sys.modules[name] = None\n"
        "import torch, subquad\n"
        "q = torch.randn(1, 5, 2, 8)\n"
        "print(subquad.causal_attention(q, q, q).shape, subquad.create('hyena', 16)(torch.randn(1, 5, 16)).shape)"
    )
    result = run(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "[1, 5, 2, 8]" in result.stdout


def test_import_loads_no_extra_and_changes_no_setting(tmp_path):
    code = (
        "import sys, torch\n"
        "settings = lambda: (torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision)\n"
        "before = settings()\n"
        "import subquad\n"
        "assert before == settings()\n"
        f"print([name for name in {EXTRAS!r} if name in sys.modules])"
    )
    result = run(code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_command_line_answers_from_anywhere(tmp_path):
    result = subprocess.run(
        [sys.executable, "-P", "-m", "subquad", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    for command in ("recall", "throughput", "report", "check", "list"):
        assert command in result.stdout
