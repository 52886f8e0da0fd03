"""The two switches of the process: refused with a reason or switched on, and turned back in every case."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from subquad.kernels import BackendError, levers
from subquad.kernels.levers import Lever, cpu_levers, matmul_lever, probe_levers, probe_matmul

ON = Lever(True, "simulated")


def route() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture(autouse=True)
def fresh_probes():
    """Probes are cached for the process; a test that simulates another machine must not leave its answer."""
    levers.probe_matmul.cache_clear()
    levers.probe_allocator.cache_clear()
    yield
    levers.probe_matmul.cache_clear()
    levers.probe_allocator.cache_clear()
    assert route() == "none"


def simulate(monkeypatch, *, machine="x86_64", flags=("avx512f",), error=3e-7, speed_up=2.0):
    monkeypatch.setattr(levers.platform, "machine", lambda: machine)
    monkeypatch.setattr(levers, "cpu_flags", lambda: set(flags))
    monkeypatch.setattr(levers, "relative_error", lambda a, b: error)
    monkeypatch.setattr(levers, "measure_speed_up", lambda a, b: speed_up)


def test_import_changes_nothing():
    code = (
        "import torch; before = torch.backends.mkldnn.matmul.fp32_precision; import subquad.kernels.levers as levers; "
        "assert torch.backends.mkldnn.matmul.fp32_precision == before and levers._allocator_users == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "machine, why",
    [
        (dict(machine="aarch64"), "needs an x86-64 processor, this is aarch64"),
        (dict(flags=()), "cannot read the processor's flags"),
        (dict(flags=("avx512f", "amx_tile")), "amx_tile"),
        (dict(flags=("amx_fp16",)), "amx_fp16"),
        (dict(error=2.3e-3), "relative error 2.3e-03"),
        (dict(error=float("nan")), "relative error nan"),
        (dict(speed_up=1.02), "1.02 times"),
    ],
)
def test_matmul_is_refused_with_its_reason(monkeypatch, machine, why):
    simulate(monkeypatch, **machine)
    with cpu_levers() as switched:
        assert not switched.matmul.on
        assert why in switched.matmul.why
        assert route() == "none"
    with pytest.raises(BackendError, match="cannot be switched on here"), matmul_lever(True):
        pass


def test_matmul_is_routed_inside_and_restored_outside(monkeypatch):
    simulate(monkeypatch)
    with cpu_levers(allocator=False) as switched:
        assert switched.matmul.on and "2.00 times" in switched.matmul.why
        assert route() == "bf16"
        with matmul_lever(False):
            assert route() == "none"
            with matmul_lever(True):
                assert route() == "bf16"
            assert route() == "none"
        assert route() == "bf16"
    assert route() == "none"


def test_an_error_inside_restores_the_route(monkeypatch):
    simulate(monkeypatch)
    with pytest.raises(RuntimeError, match="inside"), cpu_levers():
        raise RuntimeError("inside")
    assert route() == "none"
    assert levers._allocator_users == 0


def test_a_lever_that_is_not_asked_for_stays_off(monkeypatch):
    simulate(monkeypatch)
    with cpu_levers(matmul=False, allocator=False) as switched:
        assert switched.matmul == switched.allocator == Lever(False, "not asked for")
        assert route() == "none" and levers._allocator_users == 0


def test_what_was_switched_on_is_a_frozen_record():
    with cpu_levers() as switched:
        assert switched == probe_levers()
    with pytest.raises(dataclasses.FrozenInstanceError):
        switched.matmul = ON
    assert set(dataclasses.asdict(switched)) == {"matmul", "allocator"}


def test_probe_judges_this_processor_by_its_own_product():
    """Whatever the flags say: the lever is on only if the product measured here is a float32 product."""
    error = levers.relative_error(*levers._probe_operands())
    if probe_matmul(torch.get_num_threads()).on:
        assert error < levers.MAX_RELATIVE_ERROR


def test_probe_leaves_the_random_stream_alone():
    state = torch.get_rng_state()
    probe_levers()
    assert torch.equal(state, torch.get_rng_state())


NESTED_USERS = """
from subquad.kernels import levers
from subquad.kernels.levers import cpu_levers

with cpu_levers(matmul=False) as switched:
    assert switched.allocator.on, switched.allocator.why
    assert levers.count_page_faults(levers.PROBE_BYTES) == 0
    with cpu_levers(matmul=False):
        pass
    assert levers.count_page_faults(levers.PROBE_BYTES) == 0
assert levers.count_page_faults(levers.PROBE_BYTES) > 0
"""


@pytest.mark.skipif(levers.platform.libc_ver()[0] != "glibc", reason="glibc's own switch")
def test_allocator_keeps_memory_until_the_last_user_leaves():
    """In a process of its own: where other tests have left a hole in the heap, a tensor of any size may fit into it."""
    run = subprocess.run([sys.executable, "-c", NESTED_USERS], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_allocator_is_refused_without_glibc(monkeypatch):
    monkeypatch.setattr(levers.platform, "libc_ver", lambda: ("", ""))
    with cpu_levers(matmul=False) as switched:
        assert not switched.allocator.on
        assert "needs glibc" in switched.allocator.why
