"""Triton's own intermediate code (TTIR), read from its text: a function, its blocks and its operations."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_LOCATION = re.compile(r"\s*\bloc\((?:[^()]|\([^()]*\))*\)")
_NAME = r"%[\w$.-]+(?:#\d+)?"
NAMES = re.compile(_NAME)
_ASSIGNMENT = re.compile(r"^(%[\w$.-]+(?::\d+)?(?:, %[\w$.-]+(?::\d+)?)*) = (.*)$")
_FUNCTION = re.compile(r"^tt\.func (?:public |private )?@([\w$.]+)\((.*)$")
_LABEL = re.compile(r"^\^(\w+)(?:\((.*)\))?:")


@dataclass(frozen=True)
class Operation:
    """One operation: what it is called, the values that it defines, the rest of its line, and its regions."""

    name: str
    results: tuple[str, ...]
    text: str
    regions: tuple[tuple["Block", ...], ...] = ()

    @property
    def operands(self) -> list[str]:
        """Names of values in the order of the text, before the types."""
        return NAMES.findall(self.text.split(" : ", 1)[0])

    @property
    def types(self) -> str:
        """What follows the first colon."""
        return self.text.split(" : ", 1)[-1]


@dataclass
class Block:
    """A label, the arguments that a jump hands it, and the operations up to the next jump."""

    label: str
    arguments: list[str] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)


@dataclass(frozen=True)
class Function:
    """Arguments in order, without their leading %, and the blocks of the body."""

    name: str
    arguments: tuple[str, ...]
    blocks: tuple[Block, ...]


def parse_function(text: str) -> Function:
    """The first function of a module: the kernel, into which Triton has inlined all others.

    Raises:
        ValueError: there is none.
    """
    lines = _Lines(_LOCATION.sub("", text).splitlines())
    for line in lines:
        match = _FUNCTION.match(line)
        if match:
            name, signature = match.groups()
            arguments = tuple(re.findall(r"%([\w$.-]+):", signature))
            return Function(name, arguments, _parse_region(lines))
    raise ValueError("parse_function: expected TTIR with a tt.func, found none")


class _Lines:
    """The lines that hold something, one after the other; `closing` is the last one that began with a brace."""

    def __init__(self, lines: list[str]):
        stripped = (line.strip() for line in lines)
        self._lines = iter([line for line in stripped if line and not line.startswith(("#", "//"))])
        self.closing = ""

    def __iter__(self) -> Iterator[str]:
        return self._lines


def _parse_region(lines: _Lines) -> tuple[Block, ...]:
    """Blocks up to the brace that closes the region."""
    blocks = [Block("entry")]
    for line in lines:
        if line.startswith("}"):
            lines.closing = line
            break
        label = _LABEL.match(line)
        if label is None:
            blocks[-1].operations.append(_parse_operation(line, lines))
            continue
        block = Block(label[1], NAMES.findall(label[2] or ""))
        if blocks[-1].operations:
            blocks.append(block)
        else:  # the label of a region's first block, whose arguments the operation gives
            blocks[-1] = block
    return tuple(blocks)


def _parse_operation(line: str, lines: _Lines) -> Operation:
    assignment = _ASSIGNMENT.match(line)
    results = _results(assignment[1]) if assignment else ()
    text = assignment[2] if assignment else line
    regions = []
    is_open = text.endswith("{")
    while is_open:
        regions.append(_parse_region(lines))
        is_open = lines.closing.endswith("{")  # "} else {", "} do {", "}, {"
    name = re.match(r'"?([\w.]+)', text)[1]
    return Operation(name, results, text, tuple(regions))


def _results(text: str) -> tuple[str, ...]:
    """One value is written %a; two are written %a:2 and used as %a#0 and %a#1."""
    names = []
    for part in text.split(", "):
        name, _, count = part.partition(":")
        names += [f"{name}#{i}" for i in range(int(count))] if count else [name]
    return tuple(names)
