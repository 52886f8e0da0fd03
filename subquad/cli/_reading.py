"""How the command line reads what it is given, and says what cannot be."""

import ast
import importlib.util
from pathlib import Path

EXTRAS = ("tyro", "rich", "matplotlib", "plotly")  # what the extra [bench] installs
MISUSE, INTERRUPTED = 2, 130  # exit codes, as shells know them


class UsageError(Exception):
    """What was asked for cannot be done; the message is all that the user needs."""


def need_packages(who: str, extra: str, *packages: str) -> None:
    """Raise UsageError if one is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{who} needs {', '.join(missing)}; install with: pip install 'subquad[{extra}]'")


def read_layers(text: str) -> slice | tuple[int, ...] | None:
    if ":" not in text:
        return read_numbers("layers", text) or None
    try:
        return slice(*(int(part) if part.strip() else None for part in text.split(":")))
    except (ValueError, TypeError):
        raise UsageError(f"--layers: expected numbers separated by commas, or a slice, got {text!r}") from None


def read_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_numbers(option: str, text: str, kind: type = int) -> tuple:
    try:
        return tuple(kind(name) for name in read_names(text))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"--{option}: expected {what} separated by commas, got {text!r}") from None


def read_sizes(option: str, text: str) -> dict[str, int | float | str | bool | None]:
    """Values as Python writes them; what it cannot read is a word."""
    sizes = {}
    for part in read_names(text):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--{option}: expected name=value separated by commas, got {part!r}")
        try:
            sizes[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            sizes[name.strip()] = value.strip()
    return sizes


def finish(folder: Path, written: list[Path], print_table) -> None:
    print_table(folder)
    for path in (folder / "records.jsonl", *written):
        print(f"wrote {path}")
