"""Text as windows of tokens: from a file, a folder, or the standard library's source, which every machine has."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

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


def windows(
    tokenizer: PreTrainedTokenizerBase, text: Path | None, seq_len: int, num: int, *, held_out: bool, seed: int = 0
) -> Tensor:
    """(num, seq_len) token ids; the seed decides which.

    Files are read in an order that the seed shuffles and joined by the end-of-text token until there are enough. One
    file of HELD_OUT, by the hash of its name, is for `held_out` alone; a text of a single file gives its last tenth.
    """
    files = find_files(text)
    only = len(files) == 1
    mine = files if only else [file for file in files if _is_held_out(file) == held_out]
    order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(seed)).tolist()
    ids: list[int] = []
    for content in _contents([mine[i] for i in order]):
        if only:
            cut = len(content) * 9 // 10
            content = content[cut:] if held_out else content[:cut]
        ids += tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
        if len(ids) >= num * seq_len:
            break
    if len(ids) < num * seq_len:
        what = "held-out text" if held_out else "text"
        raise ValueError(f"text: {num} windows of {seq_len} need {num * seq_len} tokens of {what}, got {len(ids)}")
    return torch.tensor(ids[: num * seq_len]).view(num, seq_len)


def _contents(files: list[Path]) -> Iterator[str]:
    for file in files:
        content = file.read_text(encoding="utf-8", errors="replace")
        if content.strip():
            yield content


def _is_held_out(file: Path) -> bool:
    """By name and folder, so that it is the same wherever the text lies."""
    name = "/".join(file.parts[-2:]).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") % HELD_OUT == 0
