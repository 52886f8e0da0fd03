"""Text from a file, a folder, or the standard library's source, which every machine has; some of it held out."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch

SUFFIXES = (".py", ".rst", ".txt", ".md")
HELD_OUT = 20  # one file in so many is never trained on


def find_files(text: Path | None) -> list[Path]:
    """The files of a text, sorted: itself, or what a folder holds of SUFFIXES; of the standard library if None."""
    if text is None:
        root = Path(sysconfig.get_path("stdlib"))
        # Others' packages and the tests, whose data is often not text, are no part of the library's source.
        skipped = ("site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3")
        return [file for file in sorted(root.rglob("*.py")) if not set(skipped) & set(file.relative_to(root).parts)]
    if not text.exists():
        raise FileNotFoundError(f"text: {text} does not exist; name a file, or a folder of {', '.join(SUFFIXES)} files")
    files = [text] if text.is_file() else sorted(f for f in text.rglob("*") if f.suffix in SUFFIXES)
    if not files:
        raise ValueError(f"text: {text} holds no {', '.join(SUFFIXES)} files")
    return files


def contents(text: Path | None, *, held_out: bool, seed: int = 0) -> Iterator[str]:
    """What the files hold, in an order that the seed shuffles; empty ones are left out.

    One file of HELD_OUT, by the hash of its name, is for `held_out` alone; a text of a single file gives its last
    tenth.
    """
    files = find_files(text)
    only = len(files) == 1
    mine = files if only else [file for file in files if _is_held_out(file) == held_out]
    order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed)).tolist()
    for file in (mine[i] for i in order):
        content = file.read_text(encoding="utf-8", errors="replace")
        if only:
            cut = len(content) * 9 // 10
            content = content[cut:] if held_out else content[:cut]
        if content.strip():
            yield content


def _is_held_out(file: Path) -> bool:
    """By name and folder, so that it is the same wherever the text lies."""
    name = "/".join(file.parts[-2:]).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") % HELD_OUT == 0
