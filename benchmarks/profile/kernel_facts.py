"""What a compiled kernel is, read from its machine code: registers, spills, shared memory, copies, its hot loop."""

from collections import Counter
from dataclasses import dataclass

import triton

from .._without_device import sizes_of
from .machine_code import BasicBlock, blocks_in_loops, disassemble, hot_path, innermost_loops
from .pipes import Work, product_of, spilled_bytes, work_of
from .targets import GPU

ASYNC_COPIES = {
    "LDGSTS": "cp.async",
    "UTMALDG": "TMA load",
    "UTMASTG": "TMA store",
    "UBLKCP": "bulk copy",
    "global_load_lds_dword": "load to LDS",
    "global_load_lds_dwordx4": "load to LDS",
}


@dataclass(frozen=True)
class KernelFacts:
    """One compiled kernel.

    registers: of a thread.
    spill: bytes that a thread stores to memory and loads again for want of registers.
    shared: bytes of shared memory of a block.
    tensor_columns: of Blackwell's tensor memory, of 512; 0 elsewhere.
    instructions: of the whole kernel.
    async_copies: instructions that copy to or from shared memory without waiting, by kind.
    hot: one pass through the hot loop: the innermost loop with most FLOP of matrix instructions; None without any.
    has_loop: False if matrix instructions are outside of loops; then `hot` is the whole kernel.
    loop_spill: bytes that the instructions inside of loops move to or from a thread's own memory, each counted once.
    hot_spill: those of one pass through the hot loop; without matrix instructions every loop counts as hot.
    """

    num_warps: int
    registers: int
    spill: int
    shared: int
    tensor_columns: int
    instructions: int
    async_copies: dict[str, int]
    hot: Work | None
    has_loop: bool
    loop_spill: int
    hot_spill: int


@dataclass(frozen=True)
class Needs:
    """What `KernelFacts` has too; machine code is read only if there are spills, for else there are none in loops."""

    registers: int
    spill: int
    shared: int
    loop_spill: int = 0
    hot_spill: int = 0


def read_needs(kernel: triton.compiler.CompiledKernel, log: str, gpu: GPU) -> Needs:
    """What a kernel needs, in a fraction of the time that all of its facts take; arguments as of `read_kernel`."""
    sizes = sizes_of(kernel, log)
    if not sizes["spill"]:
        return Needs(**sizes)
    facts = read_kernel(kernel, log, gpu)
    return Needs(**sizes, loop_spill=facts.loop_spill, hot_spill=facts.hot_spill)


def read_kernel(kernel: triton.compiler.CompiledKernel, log: str, gpu: GPU) -> KernelFacts:
    """Facts of a kernel; `log` is what ptxas said of it, on AMD nothing."""
    blocks = disassemble(kernel)
    instructions = [instruction for block in blocks for instruction in block.instructions]
    copies = Counter(ASYNC_COPIES[x.name] for x in instructions if x.name in ASYNC_COPIES)
    num_warps = kernel.metadata.num_warps
    hot, has_loop = hot_loop(blocks, num_warps, gpu)
    loop_spill = spilled_bytes(x for block in blocks_in_loops(blocks) for x in block.instructions)
    return KernelFacts(
        num_warps=num_warps,
        **sizes_of(kernel, log),
        tensor_columns=getattr(kernel.metadata, "tmem_size", None) or 0,
        instructions=len(instructions),
        async_copies=dict(copies),
        hot=hot,
        has_loop=has_loop,
        loop_spill=loop_spill,
        hot_spill=hot_spill(hot, has_loop, loop_spill),
    )


def hot_spill(hot: Work | None, has_loop: bool, loop_spill: int) -> int:
    """Of a kernel whose hot loop and spills in all loops are these."""
    if hot is None:
        return loop_spill
    return hot.spilled if has_loop else 0


def hot_loop(blocks: list[BasicBlock], num_warps: int, gpu: GPU) -> tuple[Work | None, bool]:
    """(one pass through the hot loop, whether there is a loop). Of loops with equal FLOP the shortest is meant.

    Such are a masked and an unmasked loop over the same tiles: most passes go through the shorter one.
    """

    def flops_of(block: BasicBlock) -> int:
        """Products whose size is not in the text count as well, or the path would lead around them."""
        return sum(max(product.flops, 1) for x in block.instructions if (product := product_of(x, gpu)) is not None)

    def has_products(block: BasicBlock) -> bool:
        return flops_of(block) > 0

    paths = [hot_path(blocks, first, loop, flops_of) for first, loop in innermost_loops(blocks, has_products)]
    if paths:
        passes = [work_of(path, num_warps, gpu) for path in paths]
        return max(passes, key=lambda work: (work.flops, -work.instructions)), True
    if any(map(has_products, blocks)):
        return work_of([x for block in blocks for x in block.instructions], num_warps, gpu), False
    return None, False
