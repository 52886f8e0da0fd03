"""`subquad tune`: what is faster and right is kept, whatever else a GPU may do; the GPU is made up.

An op of the test's own computes short_conv with PyTorch, asks two tables as kernels would, and misbehaves in some of
their configurations; a clock reads its time from the configuration instead of waiting for it.
"""

import pytest
import torch
import triton
from rich.console import Console
from rich.progress import Progress

from subquad import cli
from subquad.benchmarks import tune
from subquad.benchmarks.profile import calls
from subquad.benchmarks.timing import Sample, Timing
from subquad.benchmarks.tune import Bench, Workload
from subquad.kernels import OPS, _configs, _target
from subquad.kernels._configs import Asked, ConfigTable, Tuned, read_tuned, store_tuned

SIZES = dict(b=2, t=9, d=5, w=3)
ROW = dict(BLOCK=16, num_warps=4)
FORWARD = Asked("fake_fwd", torch.float32, 5)
BACKWARD = Asked("fake_bwd", torch.float32, 5)
GOOD, OTHER_ROW, TOO_LARGE, WRONG, RESTLESS, ASSERTED, DEADLY = 64, 32, 512, 48, 96, 24, 13


class FakeKernels:
    """What short_conv would be with two kernels that have tables. `speed` gives the seconds of a configuration."""

    def __init__(self, speed):
        rows = {("cuda", "float32", 256): ROW, ("sm_90", "float32", 256): ROW | dict(BLOCK=OTHER_ROW)}
        choices = {"BLOCK": (GOOD, TOO_LARGE, WRONG, RESTLESS, ASSERTED), "num_warps": (4, 8)}
        self.tables = {name: ConfigTable(name, rows, choices) for name in ("fake_fwd", "fake_bwd")}
        self.speed, self.seconds, self.calls = speed, 0.0, {"fake_fwd": 0, "fake_bwd": 0}

    def launch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """x as it is, or as a configuration spoils it; its time is added."""
        config = self.tables[name].pick(x.dtype, x.shape[-1])
        self.seconds += self.speed(name, config)
        self.calls[name] += 1
        match config["BLOCK"]:
            case 512:
                raise triton.runtime.errors.OutOfResources(512, 99, "shared memory")
            case 48:
                return 1.01 * x
            case 96:
                return x + (self.calls[name] % 2) * 1e-6
            case 24:
                raise AssertionError("BLOCK must be a power of 2")
            case 13:
                raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return x

    def measure(self, run, repeats: int) -> Sample:
        self.seconds = 0.0
        for _ in range(repeats):
            run()
        return Sample(self.seconds / repeats)


class _Launch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kernels):
        ctx.kernels = kernels
        return kernels.launch("fake_fwd", x).clone()

    @staticmethod
    def backward(ctx, dy):
        return ctx.kernels.launch("fake_bwd", dy), None


def by_block(name, config) -> float:
    """num_warps=8 only helps where it is alone."""
    return {16: 1.0, OTHER_ROW: 0.9, GOOD: 0.5}.get(config["BLOCK"], 0.1) + 0.2 * (config["num_warps"] == 8)


@pytest.fixture
def tuned_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_configs, "TUNED", tmp_path / "tuned.json")
    monkeypatch.setattr(tune, "TUNED", tmp_path / "tuned.json")
    monkeypatch.setattr(_target, "gpu_name", lambda: "Fake GPU")
    return tmp_path / "tuned.json"


@pytest.fixture
def subject():
    return calls.plan_subject("short_conv", is_mixer=False, sizes=SIZES, dtype="float32")


@pytest.fixture
def fake(monkeypatch, tuned_file):
    """Makes the op and its clock."""

    def make(speed=by_block) -> tuple[FakeKernels, Bench]:
        kernels = FakeKernels(speed)
        original = calls.make_call

        def make_call(subject, device):
            call = original(subject, device)
            op = tune.op_function(subject.name)

            def forward():
                y, state = op(**call.inputs, backend="torch")
                return _Launch.apply(y, kernels), state

            return calls.Call(forward, call.inputs, call.leaves)

        monkeypatch.setattr(tune, "make_call", make_call)
        return kernels, Bench(torch.device("cpu"), "Fake GPU", kernels)

    return make


def tuned_by(bench, *subjects):
    with Progress(disable=True) as progress:
        return tune.tune_subjects(list(subjects), bench, progress)


def test_the_fastest_right_configuration_is_kept_for_this_gpu(fake, subject):
    kernels, bench = fake()
    found, failures = tuned_by(bench, subject)
    assert [x.asked for x in found] == [FORWARD, BACKWARD] and not failures
    best = dict(BLOCK=GOOD, num_warps=4)
    for x in found:
        assert (x.row, x.config, x.ratio) == (ROW, best, 0.5)
        stored = read_tuned()["Fake GPU"][str(x.asked)]
        assert stored == Tuned(best, ROW, 0.5, triton.__version__)
    assert kernels.tables["fake_fwd"].pick(torch.float32, 5) == best


def test_what_misbehaves_is_rejected_and_says_why(fake, subject):
    _, bench = fake()
    for x in tuned_by(bench, subject)[0]:
        reasons = {config.partition(",")[0]: reason for config, reason in x.rejected.items()}
        assert set(reasons) == {f"BLOCK={block}" for block in (TOO_LARGE, WRONG, RESTLESS, ASSERTED)}
        assert "OutOfResources: out of resource: shared memory" in reasons["BLOCK=512"]
        assert "is over the budget" in reasons["BLOCK=48"]
        assert "is not the same when repeated" in reasons["BLOCK=96"]
        assert "AssertionError: BLOCK must be a power of 2" in reasons["BLOCK=24"]


def test_what_is_not_faster_by_more_than_noise_is_not_kept(fake, subject, tuned_file):
    _, bench = fake(lambda name, config: 1.0 if config == ROW else 0.975)
    assert all(x.config == ROW and x.ratio == 1.0 for x in tuned_by(bench, subject)[0])
    assert not tuned_file.exists()


def test_luck_is_asked_again(fake, subject, tuned_file):
    """A configuration that was fast only while it was searched for."""
    speeds = iter([1.0] * 1000)

    def speed(name, config):
        return next(speeds) if config == ROW else by_block(name, config)

    kernels, bench = fake(speed)
    search = tune._Search(
        Workload(subject, bench.device), FORWARD, kernels.tables["fake_fwd"], bench, Progress(disable=True)
    )
    time = search._time
    search._time = lambda new, old: time(old, new) if old == ROW and new["BLOCK"] == GOOD else time(new, old)
    assert search.run().config == ROW


def test_the_rule_of_noise():
    def timing(median, minimum):
        return Timing(median, minimum, 7, 0)

    assert tune.is_faster(timing(0.96, 0.95), timing(1.0, 0.98))
    assert not tune.is_faster(timing(0.98, 0.95), timing(1.0, 0.99))  # by less than 3 %
    assert not tune.is_faster(timing(0.9, 0.8), timing(1.0, 0.85))  # within the spread of what it would replace


def test_only_the_pass_that_asks_a_table_is_timed(fake, subject):
    kernels, bench = fake(lambda name, config: 1.0 if name == "fake_fwd" else 10.0)
    workload = Workload(subject, bench.device)
    assert kernels.measure(workload.runner(FORWARD, ROW), 3).seconds == 1.0
    run = workload.runner(BACKWARD, ROW)
    assert kernels.measure(run, 3).seconds == 10.0


def test_a_table_asked_again_is_left_as_the_first_call_found_it(fake, subject):
    _, bench = fake()
    longer = calls.plan_subject("short_conv", is_mixer=False, sizes=SIZES | dict(t=12), dtype="float32")
    found, _ = tuned_by(bench, subject, longer)
    assert [x.subject for x in found] == [subject, subject]


def test_decoding_has_no_backward(fake):
    _, bench = fake()
    decode = calls.plan_subject("short_conv", is_mixer=False, sizes=SIZES | dict(t=1, state=True), dtype="float32")
    found, failures = tuned_by(bench, decode)
    assert [x.asked for x in found] == [FORWARD] and not failures


def test_a_failure_of_the_tables_own_rows_is_told(fake, subject, tuned_file):
    kernels, bench = fake()
    kernels.tables["fake_fwd"].rows["cuda", "float32", 256] = dict(BLOCK=WRONG, num_warps=4)
    found, failures = tuned_by(bench, subject)
    assert found == [] and list(failures) == [f"{FORWARD} in {subject.label}", f"{BACKWARD} in {subject.label}"]
    kernels.tables["fake_fwd"].rows["cuda", "float32", 256] = dict(BLOCK=TOO_LARGE, num_warps=4)
    found, failures = tuned_by(bench, subject)
    assert found == [] and "out of resource" in failures[subject.label]


def test_a_kill_keeps_what_was_found(fake, subject):
    kernels, bench = fake()
    launch = kernels.launch

    def interrupted(name, x):
        if read_tuned():  # the first table is stored
            raise KeyboardInterrupt
        return launch(name, x)

    kernels.launch = interrupted
    with pytest.raises(KeyboardInterrupt):
        tuned_by(bench, subject)
    _configs._read.cache_clear()
    assert list(read_tuned()["Fake GPU"]) == [str(FORWARD)]


def test_an_invalid_access_ends_the_run(fake, subject):
    kernels, bench = fake()
    kernels.tables["fake_bwd"].choices = {"BLOCK": (DEADLY,)}
    with pytest.raises(tune.LostGPUError, match=r"fake_bwd.*BLOCK=13.*left the GPU unusable.*is stored"):
        tuned_by(bench, subject)
    assert list(read_tuned()["Fake GPU"]) == [str(FORWARD)]


def test_amd_takes_no_limit_of_registers(fake, subject, monkeypatch):
    kernels, bench = fake()
    monkeypatch.setattr(_target, "architecture", lambda: "gfx942")
    for table in kernels.tables.values():
        table.rows["hip", "float32", 256] = ROW
        table.choices = {"maxnreg": (128,), "BLOCK": (GOOD,)}
    assert all(x.config == dict(BLOCK=GOOD, num_warps=4) and x.tried == 2 for x in tuned_by(bench, subject)[0])


def test_from_end_to_end(fake, monkeypatch, tuned_file, capsys):
    _, bench = fake()
    monkeypatch.setattr(tune, "find_bench", lambda device: bench)
    monkeypatch.setattr(tune, "find_gpu", lambda device: (bench.device, bench.gpu))
    monkeypatch.setitem(calls.OP_SIZES, "short_conv", SIZES)
    monkeypatch.setattr(tune, "Console", lambda: Console(width=200))
    assert cli.main(["tune", "--ops", "short_conv", "--dtypes", "float32"]) == 0
    said = capsys.readouterr().out
    assert "fake_fwd, float32, 5" in said and "BLOCK=64, num_warps=4" in said and "0.50x" in said
    assert "rejected BLOCK=512, num_warps=4: OutOfResources" in said
    assert f"2 of 2 tables tuned, in {tuned_file}" in said
    assert cli.main(["tune", "--show"]) == 0
    said = capsys.readouterr().out
    assert "Fake GPU" in said and "BLOCK=16, num_warps=4" in said and "passed over" not in said
    store_tuned("Fake GPU", FORWARD, Tuned({}, ROW, 0.5, "3.0.0"))
    tune.show_tuned()
    assert "passed over: made with Triton 3.0.0" in capsys.readouterr().out
    assert cli.main(["tune", "--forget"]) == 0
    assert "forgot 2 configurations of Fake GPU" in capsys.readouterr().out
    assert cli.main(["tune", "--show"]) == 0 and "nothing is tuned" in capsys.readouterr().out


@pytest.fixture
def two_gpus(monkeypatch):
    chosen = []
    monkeypatch.setattr(tune._dispatch, "INTERPRET", False)
    for name, answer in {"is_available": True, "device_count": 2, "current_device": 1}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(_target, "gpu_name", lambda: f"GPU {chosen[-1]}")
    monkeypatch.setattr(tune, "clock_for", lambda device: f"clock of {device}")


def test_the_gpu_that_was_asked_for_is_the_current_one(two_gpus):
    assert tune.find_bench("cuda:0") == Bench(torch.device("cuda:0"), "GPU 0", "clock of cuda:0")
    assert tune.find_bench("cuda") == Bench(torch.device("cuda:1"), "GPU 1", "clock of cuda:1")
    for name in ("cuda:2", "cpu", "x"):
        with pytest.raises(ValueError, match=f"tune: device '{name}' is not there; expected one of cuda, cuda:0, cuda"):
            tune.find_bench(name)


def test_refusals(monkeypatch, capsys):
    def said(*arguments) -> str:
        assert cli.main(["tune", *arguments]) == cli.MISUSE
        return capsys.readouterr().err

    assert "tune: TRITON_INTERPRET=1 runs kernels on the CPU" in said()
    monkeypatch.setattr(tune._dispatch, "INTERPRET", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "tune measures on a GPU; PyTorch sees none" in said()
    assert "unknown op 'conv'; expected some of causal_attention, " in said("--ops", "conv")
    assert "unknown dtype 'int8'; expected some of float32, " in said("--dtypes", "int8")
    assert "head dims are 1 to 256, got 300" in said("--head-dims", "64,300")
    assert "ask for one" in said("--show", "--forget")


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_forms_that_can_be_called(op):
    subjects = tune.plan_subjects((op,), ("bfloat16",), (64, 128))
    assert any("backward" in subject.passes for subject in subjects)
    assert len({subject.label for subject in subjects}) == len(subjects)
