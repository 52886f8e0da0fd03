"""Machine code is read as it is printed: blocks, loops, the hot path, and what its instructions cost."""

import pytest

from subquad.benchmarks.profile.kernel_facts import hot_loop, hot_spill
from subquad.benchmarks.profile.machine_code import (
    Instruction,
    blocks_in_loops,
    hot_path,
    innermost_loops,
    parse_amdgcn,
    parse_sass,
)
from subquad.benchmarks.profile.pipes import product_of, shared_bytes, spilled_bytes, work_of
from subquad.benchmarks.profile.targets import GPUS

H100, A100, MI300 = GPUS["h100"], GPUS["a100"], GPUS["mi300"]

# A loop around a loop; the inner one waits in a loop of its own and may skip a store.
SASS = """
.text.some_kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 EXIT ;
.L_x_0:
        /*0020*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_1:
        /*0030*/                   LDGSTS.E.128 [R3], [R4.64] ;
.L_x_2:
        /*0040*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR4], R5 ;
        /*0050*/              @!P1 BRA `(.L_x_2) ;
        /*0060*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR48], RZ, !UPT ;
        /*0070*/                   HGMMA.64x64x16.F32.BF16 R24, R32, gdesc[UR8], R24, gsb0 ;
        /*0080*/                   MUFU.EX2 R6, R7 ;
        /*0090*/              @P2  BRA `(.L_x_3) ;
        /*00a0*/                   STG.E [R8.64], R9 ;
        /*00b0*/                   FADD R10, R11, R12 ;
.L_x_3:
        /*00c0*/                   BRA.U UP0, `(.L_x_1) ;
        /*00d0*/               @P3 BRA `(.L_x_0) ;
        /*00e0*/                   EXIT ;
.L_x_4:
        /*00f0*/                   BRA `(.L_x_4);
"""

AMD = """
\t.text
some_kernel:
; %bb.0:
\ts_load_dwordx2 s[2:3], s[0:1], 0x0
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
\tds_read_b128 v[0:3], v8
\tv_mfma_f32_32x32x8_bf16 v[18:33], v[104:105], v[172:173], 0
\tv_exp_f32_e32 v1, v2
\ts_cbranch_scc1 .LBB0_1
; %bb.2:
\ts_endpgm
.Lfunc_end0:
\tv_mfma_f32_32x32x8_bf16 v[18:33], v[104:105], v[172:173], 0
"""


def names(instructions) -> list[str]:
    return [instruction.name for instruction in instructions]


def test_sass_becomes_blocks_that_know_what_comes_next():
    blocks = parse_sass(SASS)
    assert [len(block.instructions) for block in blocks] == [2, 1, 1, 2, 4, 2, 1, 1, 1, 1]
    after = [block.successors for block in blocks]
    assert after == [[1], [2], [3], [3, 4], [6, 5], [6], [2, 7], [1, 8], [], [9]]
    assert blocks[4].instructions[0] == Instruction("HGMMA.64x64x16.F32.BF16", "R24, gdesc[UR48], RZ, !UPT")


def test_hot_path_leaves_out_waiting_and_what_may_be_skipped():
    blocks = parse_sass(SASS)

    def flops(block) -> int:
        return names(block.instructions).count("HGMMA")

    [(first, loop)] = innermost_loops(blocks, lambda block: flops(block) > 0)
    assert (first, loop) == (2, {2, 3, 4, 5, 6})
    path = hot_path(blocks, first, loop, flops)
    assert names(path) == ["LDGSTS", "SYNCS", "BRA", "HGMMA", "HGMMA", "MUFU", "BRA", "BRA"]


def test_hot_loop_is_counted_for_all_warps():
    hot, has_loop = hot_loop(parse_sass(SASS), 4, H100)
    assert has_loop and hot.instructions == 8 and hot.products == {"HGMMA": 2}
    assert hot.flops == 2 * (2 * 64 * 64 * 16)
    # 8 instructions of 4 warps on 4 schedulers; 262144 FLOP at 4096; 4 warps x 32 lanes at 16 a clock.
    # shared memory, 128 bytes a clock: 4 warps copy 512 bytes each; 64x16 and twice 16x64 operands of 2 bytes.
    wanted = {"issue": 8.0, "matrix": 64.0, "special": 8.0, "float": 0.0, "integer": 0.0, "shared": 16.0 + 3 * 16.0}
    assert hot.clocks == wanted
    assert hot.matrix_share == 1.0


def test_products_outside_of_loops_are_one_pass_and_none_is_none():
    straight = "\n".join(line for line in SASS.splitlines() if "BRA" not in line)
    hot, has_loop = hot_loop(parse_sass(straight), 4, H100)
    assert not has_loop and hot.products == {"HGMMA": 2} and hot.instructions == 11
    without = "\n".join(line for line in SASS.splitlines() if "HGMMA" not in line)
    assert hot_loop(parse_sass(without), 4, H100) == (None, False)


def test_products_whose_size_is_not_known_are_on_the_hot_path():
    """On Blackwell one elected thread issues them, behind a branch that the others take."""
    blackwell = SASS.replace("STG.E [R8.64], R9", "UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8]").replace("HGMMA", "FFMA")
    hot, has_loop = hot_loop(parse_sass(blackwell), 4, GPUS["b200"])
    assert has_loop and hot.products == {"UTCHMMA": 1} and hot.flops == 0 and hot.matrix_share is None


def test_amd_assembly_ends_with_the_function():
    blocks = parse_amdgcn(AMD)
    assert [names(block.instructions) for block in blocks] == [
        ["s_load_dwordx2"],
        ["ds_read_b128", "v_mfma_f32_32x32x8_bf16", "v_exp_f32_e32", "s_cbranch_scc1"],
        ["s_endpgm"],
    ]
    assert [block.successors for block in blocks] == [[1], [1, 2], []]
    hot, has_loop = hot_loop(blocks, 2, MI300)
    assert has_loop and hot.flops == 2 * (2 * 32 * 32 * 8) and hot.products == {"MFMA.bf16": 1}
    assert hot.clocks["matrix"] == hot.flops / 2048 and hot.clocks["shared"] == 2 * 64 * 16 / 128


SPILLS = """
        /*0000*/                   STL.128 [R1+0x10], R4 ;
.L_x_0:
        /*0010*/                   LDL R2, [R1] ;
.L_x_1:
        /*0020*/                   LDL.LU.64 R4, [R1+0x8] ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR48], RZ, !UPT ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   STL [R1], R2 ;
        /*0060*/               @P2 BRA `(.L_x_0) ;
        /*0070*/                   LDL.128 R4, [R1+0x10] ;
        /*0080*/                   EXIT ;
"""


def test_spills_are_told_by_where_they_are():
    """Before and after the loops 32 bytes; in the outer loop 8; in the hot one another 8."""
    blocks = parse_sass(SPILLS)
    assert spilled_bytes(x for block in blocks for x in block.instructions) == 16 + 4 + 8 + 4 + 16
    in_loops = spilled_bytes(x for block in blocks_in_loops(blocks) for x in block.instructions)
    assert in_loops == 4 + 8 + 4
    assert hot_spill(*hot_loop(blocks, 4, H100), in_loops) == 8


def test_spills_of_a_kernel_without_products_are_hot_in_every_loop():
    blocks = parse_sass(SPILLS.replace("HGMMA", "FFMA"))
    in_loops = spilled_bytes(x for block in blocks_in_loops(blocks) for x in block.instructions)
    assert hot_spill(*hot_loop(blocks, 4, H100), in_loops) == in_loops == 16
    straight = parse_sass("\n".join(line for line in SPILLS.splitlines() if "BRA" not in line))
    assert blocks_in_loops(straight) == [] and hot_spill(*hot_loop(straight, 4, H100), 0) == 0


@pytest.mark.parametrize("opcode, count", [
    ("scratch_load_dword", 4), ("scratch_store_dwordx4", 16), ("scratch_load_dwordx3", 12), ("scratch_store_short", 4),
    ("global_load_dword", 0), ("LDS.128", 0), ("STL", 4), ("LDL.64", 8),
])  # fmt: skip
def test_spilled_bytes_are_told_by_the_opcode(opcode, count):
    assert spilled_bytes([Instruction(opcode)]) == count


@pytest.mark.parametrize("opcode, gpu, flops, share", [
    ("HMMA.16816.F32.BF16", A100, 2 * 16 * 8 * 16, 1.0),
    ("HMMA.1688.F32.TF32", A100, 2 * 16 * 8 * 8, 0.5),
    ("HMMA.16816.F32", H100, 2 * 16 * 8 * 16, 0.63),
    ("HGMMA.64x256x16.F32.BF16", H100, 2 * 64 * 256 * 16 // 4, 1.0),
    ("HGMMA.64x32x8.F32.TF32", H100, 2 * 64 * 32 * 8 // 4, 0.5),
    ("v_mfma_f32_16x16x16_bf16", MI300, 2 * 16 * 16 * 16, 1.0),
    ("v_mfma_f32_32x32x8_bf16_1k", MI300, 2 * 32 * 32 * 8, 1.0),
    ("v_mfma_f32_32x32x2_f32", MI300, 2 * 32 * 32 * 2, 0.125),
    ("v_mfma_f32_4x4x4_16b_f16", MI300, 2 * 4 * 4 * 4 * 16, 1.0),
])  # fmt: skip
def test_matrix_instructions_say_their_size(opcode, gpu, flops, share):
    product = product_of(Instruction(opcode), gpu)
    assert (product.flops, product.share) == (flops, share)


def test_what_is_not_a_product_is_none():
    assert product_of(Instruction("FFMA"), H100) is None and product_of(Instruction("v_fma_f32"), MI300) is None
    assert product_of(Instruction("UTCHMMA"), GPUS["b200"]).flops == 0  # its size is not in the text


@pytest.mark.parametrize("opcode, operands, moved", [
    ("LDS", "R1, [R2]", 128),
    ("STS.128", "[R2], R4", 512),
    ("LDSM.16.M88.4", "R4, [R2]", 512),
    ("LDSM.16.MT88.2", "R4, [R2]", 256),
    ("HGMMA.64x32x16.F32.BF16", "R56, gdesc[UR48], R56", (64 * 16 + 32 * 16) * 2 / 4),
    ("HGMMA.64x32x16.F32.BF16", "R56, R32, gdesc[UR48], R56", 32 * 16 * 2 / 4),
    ("FFMA", "R1, R2, R3, R4", 0),
])  # fmt: skip
def test_shared_memory_is_counted_by_width(opcode, operands, moved):
    assert shared_bytes(Instruction(opcode, operands), H100) == moved


def test_an_older_gpu_takes_twice_as_long_for_float32():
    additions = [Instruction("FADD")] * 10
    assert work_of(additions, 8, A100).clocks["float"] == 2 * work_of(additions, 8, H100).clocks["float"] == 40.0
    assert work_of(additions, 8, A100).clocks["issue"] == 20.0
