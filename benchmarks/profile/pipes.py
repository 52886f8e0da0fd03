"""What one instruction costs each part of a multiprocessor: matrix units, special functions, shared memory and so on.

Costs are clocks of the multiprocessor at full rate. An instruction that is in no table costs only the slot in which
it is issued, so sums are lower bounds. Which unit an opcode runs on is not documented for all; the tables hold those
that the makers' guides name.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .machine_code import Instruction
from .targets import GPU

PARTS = 4  # of a multiprocessor, each issues one instruction of a warp per clock
SHARED_BYTES = 128  # that shared memory moves per clock
PIPES = ("issue", "matrix", "special", "float", "integer", "shared")

SPECIAL = {"MUFU", "F2I", "I2F", "F2F", "FRND", "POPC", "FLO", "BREV"}
FLOAT = {"FFMA", "FMUL", "FADD"}
INTEGER = {"IADD3", "LOP3", "SHF", "ISETP", "FSETP", "SEL", "FSEL", "FMNMX", "IMNMX", "PRMT", "LEA", "IABS", "VIADD"}
AMD_SPECIAL = ("v_exp", "v_log", "v_rcp", "v_rsq", "v_sqrt", "v_sin", "v_cos")

WARP_MMA = ("HMMA", "IMMA", "QMMA")
GROUP_MMA = ("HGMMA", "IGMMA", "QGMMA")  # four warps together
TENSOR_MEMORY_MMA = ("UTCHMMA", "UTCIMMA", "UTCQMMA")  # one thread for all warps; the text does not tell the size
WARP_SHAPES = {"1684": 16 * 8 * 4, "1688": 16 * 8 * 8, "16816": 16 * 8 * 16, "16832": 16 * 8 * 32, "16864": 16 * 8 * 64}
_MFMA = re.compile(r"v_mfma_\w+?_(\d+)x(\d+)x(\d+)_(?:(\d+)b_)?(\w+)")
_SCRATCH = re.compile(r"scratch_(?:load|store)_(?:dword(?:x([234]))?|\w+)$")
_GROUP_SHAPE = re.compile(r"\.(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class Product:
    """A matrix instruction: its kind, FLOP for each warp that issues it, and the rate of float16 it runs at."""

    kind: str
    flops: int
    share: float


@dataclass(frozen=True)
class Work:
    """One pass of a block of warps through some instructions.

    instructions: issued by each warp.
    products: matrix instructions of each warp by kind.
    flops: of the matrix instructions of all warps; 0 where the text does not tell the size.
    clocks: of the multiprocessor, for each of PIPES.
    spilled: bytes that each thread moves to or from memory of its own.
    """

    instructions: int
    products: dict[str, int]
    flops: int
    clocks: dict[str, float]
    spilled: int

    @property
    def busiest(self) -> str:
        """The pipe that takes longest."""
        return max(self.clocks, key=self.clocks.__getitem__)

    @property
    def matrix_share(self) -> float | None:
        """The largest share of their time that the matrix units can be busy, if everything else overlaps."""
        if not self.flops:
            return None
        return self.clocks["matrix"] / self.clocks[self.busiest]


def product_of(instruction: Instruction, gpu: GPU) -> Product | None:
    """What a matrix instruction computes, None for any other."""
    name = instruction.name
    modifiers = instruction.opcode.split(".")
    if name in WARP_MMA:
        shape = next((WARP_SHAPES[part] for part in modifiers if part in WARP_SHAPES), 0)
        return Product(_kind(modifiers), 2 * shape, gpu.warp_mma_share * _share(modifiers, gpu))
    if name in GROUP_MMA:
        m, n, k = map(int, _GROUP_SHAPE.search(instruction.opcode).groups())
        return Product(_kind(modifiers), 2 * m * n * k // 4, _share(modifiers, gpu))
    if name in TENSOR_MEMORY_MMA:
        return Product(name, 0, 1.0)
    found = _MFMA.match(instruction.opcode)
    if found is None:
        return None
    m, n, k, blocks, element = found.groups()
    element = element.removesuffix("_1k")  # as the first instructions of this kind for bfloat16 are called
    rates = {"f16": gpu.half_rate, "bf16": gpu.half_rate, "xf32": gpu.tf32_rate}
    share = rates.get(element, gpu.float_rate) / gpu.half_rate
    return Product(f"MFMA.{element}", 2 * int(m) * int(n) * int(k) * int(blocks or 1), share)


def work_of(instructions: Iterable[Instruction], num_warps: int, gpu: GPU) -> Work:
    """What `num_warps` warps that all run these instructions cost a multiprocessor."""
    instructions = list(instructions)
    clocks = dict.fromkeys(PIPES, 0.0)
    products, flops = Counter(), 0
    for instruction in instructions:
        product = product_of(instruction, gpu)
        if product is not None:
            products[product.kind] += 1
            flops += product.flops
            clocks["matrix"] += product.flops / (gpu.half_rate * product.share)
        unit = _unit(instruction)
        if unit is not None:
            clocks[unit] += gpu.warp_size / _lanes(unit, gpu)
        clocks["issue"] += 1 / PARTS
        clocks["shared"] += shared_bytes(instruction, gpu) / SHARED_BYTES
    clocks = {pipe: num_warps * value for pipe, value in clocks.items()}
    return Work(len(instructions), dict(products), num_warps * flops, clocks, spilled_bytes(instructions))


def spilled_bytes(instructions: Iterable[Instruction]) -> int:
    """Bytes that a thread moves to or from memory of its own, where a register finds room that is nowhere else."""
    return sum(_own_memory_bytes(instruction) for instruction in instructions)


def _own_memory_bytes(instruction: Instruction) -> int:
    if instruction.name in ("LDL", "STL"):
        return 16 if ".128" in instruction.opcode else 8 if ".64" in instruction.opcode else 4
    words = _SCRATCH.match(instruction.opcode)
    return 4 * int(words[1] or 1) if words else 0


def shared_bytes(instruction: Instruction, gpu: GPU) -> float:
    """Bytes that one warp moves through shared memory, without bank conflicts."""
    name, opcode = instruction.name, instruction.opcode
    if name in ("LDS", "STS", "LDGSTS"):
        width = 16 if ".128" in opcode else 8 if ".64" in opcode else 4
        return width * gpu.warp_size
    if name in ("LDSM", "STSM"):
        return 128 * int(next(iter(re.findall(r"\.(?:M\d+\.)?([124])$", opcode)), 1))
    if name in GROUP_MMA:
        m, n, k = map(int, _GROUP_SHAPE.search(opcode).groups())
        size = 4 if "TF32" in opcode else 2 if name == "HGMMA" else 1
        reads_a = instruction.operands.split(",")[1:2] and "gdesc" in instruction.operands.split(",")[1]
        return (n * k + (m * k if reads_a else 0)) * size / 4
    if name.startswith(("ds_read", "ds_write")):
        bits = re.search(r"_b(\d+)", name)
        return (int(bits[1]) if bits else 32) // 8 * gpu.warp_size
    return 0.0


def _kind(modifiers: list[str]) -> str:
    return modifiers[0] + (".TF32" if "TF32" in modifiers else "")


def _share(modifiers: list[str], gpu: GPU) -> float:
    if "TF32" in modifiers:
        return gpu.tf32_rate / gpu.half_rate
    return 2.0 if modifiers[0].startswith(("I", "Q")) else 1.0


def _unit(instruction: Instruction) -> str | None:
    name = instruction.name
    if name in SPECIAL or name.startswith(AMD_SPECIAL):
        return "special"
    if name in FLOAT:
        return "float"
    if name in INTEGER or (name.startswith("v_") and not name.startswith("v_mfma")):
        return "integer"
    return None


def _lanes(unit: str, gpu: GPU) -> float:
    """Threads that a multiprocessor serves per clock."""
    return {"special": gpu.special_rate, "float": gpu.float_rate / 2, "integer": gpu.integer_rate}[unit]
