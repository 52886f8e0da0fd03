"""What a launch asks of device memory and of the matrix units, counted in its intermediate code without running it.

All programs of the grid are followed at once: a scalar is an array with one number for each. A loop that holds no
branch and no other loop is gone through once and counts as often as it repeats.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from . import _scalars
from .ttir import NAMES, Block, Function, Operation

BYTES = {"i1": 1, "i8": 1, "f8": 1, "i16": 2, "bf16": 2, "f16": 2, "i32": 4, "f32": 4, "i64": 8, "f64": 8}
PRODUCTS = {"tf32": ("tf32", 1), "tf32x3": ("tf32", 3), "bf16x3": ("half", 3), "bf16x6": ("half", 6)}
CARRY_POINTERS = (
    "tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.bitcast", "tt.reshape", "tt.trans",
    "tt.make_tensor_descriptor", "tt.make_tensor_ptr", "tt.advance", "arith.select",
)  # fmt: skip
CONTROL = ("scf.", "cf.")

Weight = np.ndarray  # (programs,) how often each program comes to a place


class UnknownTraffic(Exception):
    """What a kernel does depends on values that are in memory."""


@dataclass(frozen=True)
class Pointer:
    """A pointer, or a tensor of them, into the tensor that this argument is."""

    argument: str


@dataclass
class Traffic:
    """Sums over all programs of a launch.

    reads, writes: bytes that loads and stores name, by argument. A masked access counts in full, an atomic as both.
    flops: of matrix products by what multiplies: "half" (float16, bfloat16), "tf32", or "float" for units that are
        not matrix units. A float32 product made of three tf32 products counts three times.
    """

    reads: Counter = field(default_factory=Counter)
    writes: Counter = field(default_factory=Counter)
    flops: Counter = field(default_factory=Counter)

    @property
    def requested_bytes(self) -> int:
        return self.reads.total() + self.writes.total()

    def device_bytes(self, sizes: dict[str, int]) -> int:
        """Bytes that must cross device memory if nothing is fetched twice.

        An argument crosses in each direction at most once: as many bytes as are named, or its tensor if that is less.
        """
        return sum(
            min(count, sizes.get(name, count)) for way in (self.reads, self.writes) for name, count in way.items()
        )


def count_traffic(function: Function, scalars: dict[str, int], grid: tuple[int, int, int]) -> Traffic:
    """Follow every program of a launch.

    Args:
        function: the kernel.
        scalars: values of its whole-number arguments by name; all others count as pointers or unknown.
        grid: programs along x, y, z.

    Raises:
        UnknownTraffic: a loop or a branch depends on values that are in memory.
    """
    return _Walk(grid).run(function, scalars)


class _Walk:
    def __init__(self, grid: tuple[int, int, int]):
        self.grid = grid
        index = np.arange(math.prod(grid), dtype=np.int64)
        x, y, _ = grid
        self.program = {"x": index % x, "y": index // x % y, "z": index // (x * y)}
        self.traffic = Traffic()
        self.values = {}

    def run(self, function: Function, scalars: dict[str, int]) -> Traffic:
        for name in function.arguments:
            self.values[f"%{name}"] = np.int64(scalars[name]) if name in scalars else Pointer(name)
        self._region(function.blocks, np.ones(math.prod(self.grid), dtype=np.int64))
        return self.traffic

    def _region(self, blocks: tuple[Block, ...], weight: Weight) -> Operation | None:
        """Go through the blocks in order; return what the last of them ends with. Jumps lead forward only."""
        weights = {blocks[0].label: weight}
        end = None
        for block in blocks:
            here = weights.get(block.label)
            if here is None or not here.any():
                continue
            for operation in block.operations:
                if operation.name in ("scf.yield", "scf.condition", "tt.return"):
                    end = operation
                elif operation.name in ("cf.br", "cf.cond_br"):
                    self._jump(operation, here, blocks, weights)
                else:
                    self._operation(operation, here)
        return end

    def _jump(self, operation: Operation, weight: Weight, blocks: tuple[Block, ...], weights: dict) -> None:
        arguments = {block.label: block.arguments for block in blocks}
        targets = re.findall(r"\^(\w+)(?:\(([^)]*)\))?", operation.text)
        taken = [weight]
        if operation.name == "cf.cond_br":
            taken = self._split(operation, weight)
        for (label, handed), part in zip(targets, taken, strict=True):
            for name, source in zip(arguments[label], NAMES.findall(handed), strict=True):
                value = self.values.get(source)
                self.values[name] = _choose(part > 0, value, self.values.get(name)) if label in weights else value
            weights[label] = weights.get(label, 0) + part

    def _operation(self, operation: Operation, weight: Weight) -> None:
        name = operation.name
        if name in _COUNTED:
            _COUNTED[name](self, operation, weight)
        elif name in ("tt.get_program_id", "tt.get_num_programs"):
            axis = operation.text.split()[1]
            number = self.program[axis] if name == "tt.get_program_id" else np.int64(self.grid["xyz".index(axis)])
            self.values[operation.results[0]] = number
        elif name in CARRY_POINTERS and (pointer := self._pointer(operation)) is not None:
            self.values[operation.results[0]] = pointer
        elif name.startswith("arith.") and "tensor<" not in operation.text:
            operands = [self.values.get(operand) for operand in operation.operands]
            self.values[operation.results[0]] = _scalars.evaluate(operation, operands)

    def _pointer(self, operation: Operation) -> Pointer | None:
        found = (self.values.get(operand) for operand in operation.operands)
        return next((value for value in found if isinstance(value, Pointer)), None)

    def _known(self, name: str, operation: Operation) -> np.ndarray:
        value = self.values.get(name)
        if not _scalars.is_known(value):
            raise UnknownTraffic(f"{operation.name} depends on values in memory: {operation.text[:80]}")
        return value

    def _split(self, operation: Operation, weight: Weight) -> list[Weight]:
        """The programs for which the condition holds, and the others."""
        holds = np.asarray(self._known(operation.operands[0], operation), dtype=bool)
        return [weight * holds, weight * ~holds]

    def _handed(self, end: Operation | None) -> list:
        return [] if end is None else [self.values.get(name) for name in end.operands]

    def _for(self, operation: Operation, weight: Weight) -> None:
        counter, low, high, step, *pairs = operation.operands
        low, high, step = (self._known(name, operation) for name in (low, high, step))
        trips = np.maximum(0, -((low - high) // step))
        carried, initial = pairs[::2], pairs[1::2]
        for name, source in zip(carried, initial, strict=True):
            self.values[name] = self.values.get(source)
        body = operation.regions[0]
        if _is_straight(body):
            # Every pass asks for as much as the first; numbers that change from pass to pass are not known after it.
            for name in carried:
                if not isinstance(self.values[name], Pointer):
                    self.values[name] = None
            self.values[counter] = low
            self._region(body, weight * trips)
        else:
            for i in range(int(np.max(trips * (weight > 0)))):
                self.values[counter] = low + i * step
                handed = self._handed(self._region(body, weight * (i < trips)))
                for name, value in zip(carried, handed, strict=True):
                    self.values[name] = _choose(i < trips, value, self.values[name])
        for name, source in zip(operation.results, carried, strict=True):
            self.values[name] = self.values[source]

    def _if(self, operation: Operation, weight: Weight) -> None:
        results = None
        for region, part in zip(operation.regions, self._split(operation, weight), strict=False):
            if not part.any():
                continue
            handed = self._handed(self._region(region, part))
            results = handed if results is None else list(map(partial(_choose, part > 0), handed, results))
        if results:
            self.values.update(zip(operation.results, results, strict=True))

    def _while(self, operation: Operation, weight: Weight) -> None:
        before, after = operation.regions
        carried, initial = operation.operands[::2], operation.operands[1::2]
        for name, source in zip(carried, initial, strict=True):
            self.values[name] = self.values.get(source)
        results = None
        while weight.any():
            end = self._region(before, weight)
            _, *handed = self._handed(end)
            runs = weight > 0
            results = handed if results is None else list(map(partial(_choose, runs), handed, results))
            weight, _ = self._split(end, weight)
            if weight.any():
                self.values.update(zip(after[0].arguments, handed, strict=True))
                passed = self._handed(self._region(after, weight))
                for name, value in zip(carried, passed, strict=True):
                    self.values[name] = _choose(weight > 0, value, self.values[name])
        self.values.update(zip(operation.results, results, strict=True))

    def _read(self, operation: Operation, weight: Weight) -> None:
        self._count(self.traffic.reads, operation, weight)

    def _write(self, operation: Operation, weight: Weight) -> None:
        self._count(self.traffic.writes, operation, weight)

    def _read_and_write(self, operation: Operation, weight: Weight) -> None:
        self._read(operation, weight)
        self._write(operation, weight)

    def _count(self, counter: Counter, operation: Operation, weight: Weight) -> None:
        pointer = self.values.get(operation.operands[0])
        if not isinstance(pointer, Pointer):
            raise UnknownTraffic(f"{operation.name} goes to an address that is not an argument's")
        counter[pointer.argument] += access_bytes(operation) * int(weight.sum())

    def _dot(self, operation: Operation, weight: Weight) -> None:
        kind, flops = product(operation)
        self.traffic.flops[kind] += flops * int(weight.sum())


_COUNTED = {
    "scf.for": _Walk._for,
    "scf.if": _Walk._if,
    "scf.while": _Walk._while,
    "tt.dot": _Walk._dot,
    "tt.load": _Walk._read,
    "tt.descriptor_load": _Walk._read,
    "tt.store": _Walk._write,
    "tt.descriptor_store": _Walk._write,
    "tt.atomic_rmw": _Walk._read_and_write,
    "tt.atomic_cas": _Walk._read_and_write,
}


def access_bytes(operation: Operation) -> int:
    """Bytes of one load or store: of the tensor that is moved, or of a single element."""
    tensor = re.search(r"<((?:\d+x)+)(?:!tt\.ptr<)?(\w+)", operation.types)
    if tensor is None:
        return BYTES[re.search(r"!tt\.ptr<(\w+)>", operation.types)[1]]
    shape, element = tensor.groups()
    return math.prod(int(size) for size in shape.split("x") if size) * BYTES[element]


def product(operation: Operation) -> tuple[str, int]:
    """(what multiplies, FLOP) of one tt.dot."""
    (a, element), (b, _) = re.findall(r"tensor<([\dx]+)x(\w+)>", operation.types)[:2]
    flops = 2 * math.prod(int(size) for size in a.split("x")) * int(b.split("x")[-1])
    if element != "f32":
        return "half", flops
    precision = re.search(r"inputPrecision = (\w+)", operation.text)
    kind, times = PRODUCTS.get(precision[1], ("float", 1)) if precision else ("float", 1)
    return kind, times * flops


def _choose(where: np.ndarray, new, old):
    """`new` where programs came this way, `old` elsewhere; None if that is not known."""
    if _scalars.is_known(new) and _scalars.is_known(old):
        return np.where(where, new, old)
    return new if isinstance(new, Pointer) and new == old else None


def _is_straight(blocks: tuple[Block, ...]) -> bool:
    """Whether nothing in a loop's body depends on which pass it is."""
    return not any(
        operation.name.startswith(CONTROL) and operation.name != "scf.yield"
        for block in blocks
        for operation in block.operations
    )
