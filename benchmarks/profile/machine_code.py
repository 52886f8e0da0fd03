"""Machine code as text: what nvdisasm and the AMD compiler print, cut into basic blocks of instructions."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import triton

_SASS = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ +)?([A-Z][\w.]*)\s*(.*?)\s*;")
_SASS_LABEL = re.compile(r"(\.L_\w+):")
_SASS_PREDICATE = re.compile(r"!?U?P\d\s*,")
_AMD = re.compile(r"\s+([a-z]\w*)(?:\s+(.*))?$")
_AMD_LABEL = re.compile(r"(\.L\w+):")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    opcode: with its modifiers, e.g. "HGMMA.64x32x16.F32.BF16".
    operands: the rest of its text.
    conditional: whether a predicate may switch it off.
    """

    opcode: str
    operands: str = ""
    conditional: bool = False

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]


@dataclass
class BasicBlock:
    """Instructions that run one after the other, and the indices of the blocks that may come next."""

    labels: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)


def disassemble(kernel: triton.compiler.CompiledKernel) -> list[BasicBlock]:
    """Blocks of a compiled kernel, the first being its entry."""
    if "amdgcn" in kernel.asm:
        return parse_amdgcn(kernel.asm["amdgcn"])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return parse_sass(done.stdout)


def parse_sass(text: str) -> list[BasicBlock]:
    """Blocks from what `nvdisasm -c` prints of an NVIDIA kernel."""

    def read(line: str) -> str | Instruction | None:
        label = _SASS_LABEL.match(line)
        if label:
            return label[1]
        found = _SASS.match(line)
        if found is None:
            return None
        predicate, opcode, operands = found.groups()
        is_jump = opcode.startswith(("BRA", "BRX"))
        conditional = predicate is not None or (is_jump and _SASS_PREDICATE.match(operands) is not None)
        return Instruction(opcode, operands, conditional)

    return _blocks(map(read, text.splitlines()), jumps=("BRA",), ends=("EXIT", "RET", "BRX"))


def parse_amdgcn(text: str) -> list[BasicBlock]:
    """Blocks from the assembly that the AMD compiler prints, up to the end of the first function."""

    def read(line: str) -> str | Instruction | None:
        line = line.split(";")[0].rstrip()
        label = _AMD_LABEL.match(line)
        if label:
            return label[1]
        found = _AMD.match(line)
        if found is None:
            return None
        opcode, operands = found.groups()
        return Instruction(opcode, operands or "", opcode.startswith("s_cbranch"))

    body = re.split(r"^\.Lfunc_end", text, flags=re.MULTILINE)[0]
    jumps = ("s_branch", *{line.split()[0] for line in body.splitlines() if line.strip().startswith("s_cbranch")})
    return _blocks(map(read, body.splitlines()), jumps=jumps, ends=("s_endpgm", "s_setpc_b64"))


def _blocks(items: Iterator[str | Instruction | None], jumps: tuple[str, ...], ends: tuple[str, ...]) -> list:
    """Cut labels and instructions into blocks and connect them."""
    blocks = [BasicBlock()]
    for item in items:
        if isinstance(item, str):
            if blocks[-1].instructions:
                blocks.append(BasicBlock())
            blocks[-1].labels.append(item)
        elif item is not None:
            blocks[-1].instructions.append(item)
            if item.name in (*jumps, *ends):
                blocks.append(BasicBlock())
    blocks = [block for block in blocks if block.instructions]
    places = {label: index for index, block in enumerate(blocks) for label in block.labels}
    for index, block in enumerate(blocks):
        last = block.instructions[-1]
        if last.name in jumps:
            target = re.search(r"\.L\w+", last.operands)
            block.successors += [places[target[0]]] if target and target[0] in places else []
        if (last.conditional or last.name not in (*jumps, *ends)) and index + 1 < len(blocks):
            block.successors.append(index + 1)
    return blocks


def innermost_loops(blocks: list[BasicBlock], matters: Callable[[BasicBlock], bool]) -> list[tuple[int, set[int]]]:
    """(first block, all blocks) of each loop that holds a block that matters, and no smaller loop that does."""
    found = []

    def search(nodes: set[int], outer: tuple[int, set[int]] | None) -> None:
        inner = [part for part in _cycles(blocks, nodes) if any(matters(blocks[i]) for i in part)]
        if not inner and outer is not None:
            found.append(outer)
        for part in inner:
            first = min(part)
            search(part - {first}, (first, part))

    search(set(range(len(blocks))), None)
    return found


def blocks_in_loops(blocks: list[BasicBlock]) -> list[BasicBlock]:
    """What may run more than once in a program."""
    return [blocks[i] for part in _cycles(blocks, set(range(len(blocks)))) for i in sorted(part)]


def _cycles(blocks: list[BasicBlock], nodes: set[int]) -> list[set[int]]:
    """Strongly connected parts of the graph of `nodes` that hold a cycle (Kosaraju)."""
    forward = {i: [j for j in blocks[i].successors if j in nodes] for i in nodes}
    backward = {i: [] for i in nodes}
    for i, successors in forward.items():
        for j in successors:
            backward[j].append(i)
    order, seen = [], set()
    for node in sorted(nodes):
        order += _postorder(node, forward, seen)
    parts, seen = [], set()
    for node in reversed(order):
        part = set(_postorder(node, backward, seen))
        if len(part) > 1 or any(i in forward[i] for i in part):
            parts.append(part)
    return parts


def _postorder(start: int, successors: dict[int, list[int]], seen: set[int]) -> list[int]:
    """What can be reached from `start` and was not seen, each after what it leads to."""
    if start in seen:
        return []
    seen.add(start)
    order, stack = [], [(start, iter(successors[start]))]
    while stack:
        node, rest = stack[-1]
        following = next((i for i in rest if i not in seen), None)
        if following is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(successors[following])))
    return order


def hot_path(
    blocks: list[BasicBlock], first: int, loop: set[int], flops_of: Callable[[BasicBlock], float]
) -> list[Instruction]:
    """The instructions of one pass through a loop: the way with most FLOP and, of these, fewest instructions.

    So neither waiting again for a barrier nor a branch around the products is counted.
    """
    inside = {i: [j for j in blocks[i].successors if j in loop and j != first] for i in loop}
    order = _postorder(first, inside, set())[::-1]
    rank = {node: place for place, node in enumerate(order)}

    def cost(i: int) -> tuple[float, int]:
        return flops_of(blocks[i]), -len(blocks[i].instructions)

    best = {first: cost(first)}
    came_from = {}
    for node in order:
        for following in inside[node]:
            if rank[following] <= rank[node]:
                continue  # back to where a loop inside this one begins
            total = tuple(sum(pair) for pair in zip(best[node], cost(following), strict=True))
            if following not in best or total > best[following]:
                best[following], came_from[following] = total, node
    closing = [node for node in order if first in blocks[node].successors]
    node = max(closing, key=best.__getitem__)
    path = [node]
    while node != first:
        node = came_from[node]
        path.append(node)
    return [instruction for node in reversed(path) for instruction in blocks[node].instructions]
