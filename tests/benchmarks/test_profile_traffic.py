"""Bytes and products of small kernels, written as Triton prints them, against counts by hand."""

import pytest

from subquad.benchmarks.profile.traffic import UnknownTraffic, count_traffic
from subquad.benchmarks.profile.ttir import parse_function

FRAME = """
#loc = loc("somewhere.py":1:0)
module {{
  tt.func public @some_kernel(%x_ptr: !tt.ptr<bf16> {{tt.divisibility = 16 : i32}} loc("x_ptr"(#loc)), %y_ptr: !tt.ptr<f32> loc("y_ptr"(#loc)), %T: i32 loc("T"(#loc))) attributes {{noinline = false}} {{
    %c0 = arith.constant 0 : i32 loc(#loc)
    %c1 = arith.constant 1 : i32 loc(#loc)
    %c2 = arith.constant 2 : i32 loc(#loc)
    %c64 = arith.constant 64 : i32 loc(#loc)
    %pid = tt.get_program_id x : i32 loc(#loc)
    %xs = tt.splat %x_ptr : !tt.ptr<bf16> -> tensor<32x16x!tt.ptr<bf16>> loc(#loc)
    %ys = tt.splat %y_ptr : !tt.ptr<f32> -> tensor<16x!tt.ptr<f32>> loc(#loc)
    %zero = arith.constant dense<0.000000e+00> : tensor<16xf32> loc(#loc)
{body}
    tt.return loc(#loc)
  }} loc(#loc)
}} loc(#loc)
"""  # noqa: E501
LOAD = "%x{n} = tt.load %xs : tensor<32x16x!tt.ptr<bf16>> loc(#loc)"  # 1024 bytes
STORE = "tt.store %ys, %zero : tensor<16x!tt.ptr<f32>> loc(#loc)"  # 64 bytes


def count(*body: str, grid=(4, 1, 1), T: int = 130):
    lines = "\n".join(line.format(n=n) for n, line in enumerate(body))
    return count_traffic(parse_function(FRAME.format(body=lines)), {"T": T}, grid)


def test_every_program_counts():
    traffic = count(LOAD, STORE, grid=(4, 3, 2))
    assert traffic.reads == {"x_ptr": 24 * 1024} and traffic.writes == {"y_ptr": 24 * 64}
    assert traffic.requested_bytes == 24 * (1024 + 64)


def test_a_tensor_crosses_at_most_once_in_each_direction():
    traffic = count(LOAD, STORE)
    assert traffic.device_bytes({"x_ptr": 1500, "y_ptr": 100}) == 1500 + 100
    assert traffic.device_bytes({"x_ptr": 10_000, "y_ptr": 10_000}) == 4 * (1024 + 64)


def test_a_loop_counts_as_often_as_it_repeats():
    loop = "%l = scf.for %i = %pid to %T step %c64 iter_args(%p = %xs) -> (tensor<32x16x!tt.ptr<bf16>>)  : i32 {{"
    inside = "%a = tt.load %p : tensor<32x16x!tt.ptr<bf16>> loc(#loc)"
    end = "scf.yield %p : tensor<32x16x!tt.ptr<bf16>> loc(#loc)"
    # from the program's number, 0 to 3, to 130 in steps of 64: three passes, but two from 2 and 3 on
    assert count(loop, inside, end, "}}").reads == {"x_ptr": (3 + 3 + 2 + 2) * 1024}
    assert count(loop, inside, end, "}}", T=0).reads == {}


def test_a_loop_inside_a_loop_may_depend_on_the_outer_one():
    """As a causal tile reads the tiles before it."""
    body = (
        "scf.for %i = %c0 to %T step %c1  : i32 {{", "scf.for %j = %c0 to %i step %c1  : i32 {{", LOAD,
        "}} loc(#loc)", "}} loc(#loc)",
    )  # fmt: skip
    assert count(*body, T=5, grid=(1, 1, 1)).reads == {"x_ptr": (0 + 1 + 2 + 3 + 4) * 1024}


def test_branches_count_where_they_are_taken():
    body = (
        "%even = arith.remsi %pid, %c2 : i32", "%is_odd = arith.cmpi eq, %even, %c1 : i32",
        "%trips = scf.if %is_odd -> (i32) {{", LOAD, "scf.yield %c2 : i32", "}} else {{", STORE, "scf.yield %c1 : i32",
        "}}", "scf.for %i = %c0 to %trips step %c1  : i32 {{", LOAD, "}}",
    )  # fmt: skip
    traffic = count(*body, grid=(5, 1, 1))  # 0 to 4: two odd, three even
    assert traffic.reads == {"x_ptr": (2 + 2 * 2 + 3 * 1) * 1024} and traffic.writes == {"y_ptr": 3 * 64}


def test_an_early_return_leaves_out_the_rest():
    body = (
        "%late = arith.cmpi sge, %pid, %c2 : i32", "cf.cond_br %late, ^bb1, ^bb2(%c64 : i32)", "^bb1:", "tt.return",
        "^bb2(%n: i32):", "scf.for %i = %c0 to %n step %c64  : i32 {{", LOAD, "}}",
    )  # fmt: skip
    assert count(*body, grid=(7, 1, 1)).reads == {"x_ptr": 2 * 1024}


def test_a_while_loop_ends_for_each_program_by_itself():
    body = (
        "%w = scf.while (%n = %pid) : (i32) -> i32 {{", "%goes = arith.cmpi sgt, %n, %c0 : i32",
        "scf.condition(%goes) %n : i32", "}} do {{", "^bb0(%m: i32):", LOAD, "%less = arith.subi %m, %c1 : i32",
        "scf.yield %less : i32", "}}",
    )  # fmt: skip
    assert count(*body).reads == {"x_ptr": (0 + 1 + 2 + 3) * 1024}


def test_what_depends_on_memory_is_not_guessed():
    body = ("%n = tt.load %y_ptr : !tt.ptr<i32>", "scf.for %i = %c0 to %n step %c1  : i32 {{", LOAD, "}}")
    with pytest.raises(UnknownTraffic, match=r"scf\.for depends on values in memory"):
        count(*body)


@pytest.mark.parametrize("element, precision, kind, times", [
    ("bf16", "", "half", 1),
    ("f16", "", "half", 1),
    ("f32", "", "float", 1),
    ("f32", ", inputPrecision = tf32", "tf32", 1),
    ("f32", ", inputPrecision = tf32x3", "tf32", 3),
])  # fmt: skip
def test_products_are_counted_by_what_multiplies(element, precision, kind, times):
    dot = f"%d = tt.dot %a, %b, %c{precision} : tensor<32x16x{element}> * tensor<16x64x{element}> -> tensor<32x64xf32>"
    assert count(dot, grid=(3, 1, 1)).flops == {kind: 3 * times * 2 * 32 * 16 * 64}


def test_an_atomic_is_read_and_written():
    atomic = "%old = tt.atomic_rmw fadd, acq_rel, gpu, %ys, %zero : (tensor<16x!tt.ptr<f32>>, tensor<16xf32>)"
    traffic = count(atomic)
    assert traffic.reads == traffic.writes == {"y_ptr": 4 * 64}
