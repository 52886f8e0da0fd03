"""`subquad tune`: launch configurations that are faster on the GPU at hand than the table's, kept for that GPU.

For each table that an op asks while it runs, configurations near the table's row are timed in turns with the best so
far: first the other rows of the table, then one keyword changed at a time to another of the table's choices, until
none is faster. What does not compile, does not fit, computes something else or changes from run to run is rejected.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import triton
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from subquad.kernels import OPS, _dispatch, _target
from subquad.kernels._budget import over_budget
from subquad.kernels._configs import (
    TUNED,
    Asked,
    Config,
    ConfigTable,
    Tuned,
    forced,
    forget_tuned,
    read_tuned,
    recorded,
    store_tuned,
)

from ._evaluation import SHARED, backend_failures, bits, op_function
from .profile.calls import DTYPES, Call, Sizes, Subject, make_call, plan_subject
from .timing import Clock, Timing, clock_for, time_interleaved

DEFAULT_DTYPES = ("bfloat16",)
DEFAULT_HEAD_DIMS = (64, 128)
FASTER = 0.97  # the share of the time of what it replaces that a configuration may take at most
SECONDS = 5.0  # to spend at most on timing two configurations beside each other


class LostGPUError(Exception):
    """A configuration left the GPU unusable for this process, as after an access to memory that is not there."""


@dataclass(frozen=True)
class Bench:
    """Where configurations are timed; a test makes one up."""

    device: torch.device
    gpu: str
    clock: Clock


@dataclass
class Found:
    """What came out for one table: `config` is that of the table where nothing faster was found.

    ratio: time over that of the table's row, in a comparison of its own after the search.
    rejected: by configuration, why it cannot be used.
    """

    asked: Asked
    subject: Subject
    row: Config
    config: Config
    ratio: float = 1.0
    tried: int = 0
    rejected: dict[str, str] = field(default_factory=dict)


def run_tune(
    ops: tuple[str, ...] = OPS,
    dtypes: tuple[str, ...] = DEFAULT_DTYPES,
    head_dims: tuple[int, ...] = DEFAULT_HEAD_DIMS,
    device: str = "cuda",
) -> int:
    """Tune the tables that these ops ask on a GPU, store each result when it is found and print all of them.

    Args:
        ops: names from OPS.
        dtypes: of the inputs, from `profile.calls.DTYPES`.
        head_dims: widths of keys and values; convolutions have none.
        device: "cuda" or "cuda:1".

    Returns:
        0, or 1 if something failed with the tables' own rows: an exit code.

    Raises:
        ValueError: an unknown op or dtype, a head dim that cannot be, or no GPU. LostGPUError.
    """
    subjects = plan_subjects(ops, dtypes, head_dims)
    bench = find_bench(device)
    console = Console()
    with Progress(console=console, transient=True) as progress:
        found, failures = tune_subjects(subjects, bench, progress)
    print_found(found, bench, console)
    for label, reason in failures.items():
        console.print(f"{label} fails as the tables have it: {reason}", markup=False, highlight=False)
    return int(bool(failures))


def show_tuned() -> int:
    """Print what is stored for every GPU."""
    console = Console()
    everything = read_tuned()
    for gpu, rows in everything.items():
        table = _table(gpu, "table", "instead of", "tuned", "time", "")
        for asked, tuned in rows.items():
            old = "" if tuned.triton == triton.__version__ else f"passed over: made with Triton {tuned.triton}"
            table.add_row(asked, _words(tuned.instead_of), _words(tuned.config), f"{tuned.ratio:.2f}x", old)
        console.print(table)
    console.print(f"kept in {TUNED}" if everything else f"nothing is tuned: {TUNED} holds no rows", soft_wrap=True)
    return 0


def forget(device: str = "cuda") -> int:
    """Remove what is stored for the GPU at hand: its kernels are launched as the tables say."""
    gpu = find_gpu(device)[1]
    print(f"forgot {forget_tuned(gpu)} configurations of {gpu}")
    return 0


def find_gpu(device: str) -> tuple[torch.device, str]:
    """The GPU and its name, made the current one.

    Raises:
        ValueError: there is none, or kernels do not run on it.
    """
    if _dispatch.INTERPRET:
        raise ValueError("tune: TRITON_INTERPRET=1 runs kernels on the CPU, where time says nothing; unset it")
    if not torch.cuda.is_available():
        raise ValueError(
            "tune measures on a GPU; PyTorch sees none. Without one `subquad profile OP --target h100` models kernels; "
            f"what was tuned elsewhere stands in {TUNED}"
        )
    there = {f"cuda:{i}": i for i in range(torch.cuda.device_count())} | {"cuda": torch.cuda.current_device()}
    if device not in there:
        raise ValueError(f"tune: device {device!r} is not there; expected one of {', '.join(sorted(there))}")
    torch.cuda.set_device(there[device])
    return torch.device("cuda", there[device]), _target.gpu_name()


def find_bench(device: str) -> Bench:
    gpu, name = find_gpu(device)
    return Bench(gpu, name, clock_for(gpu))


def plan_subjects(ops: tuple[str, ...], dtypes: tuple[str, ...], head_dims: tuple[int, ...]) -> list[Subject]:
    """All calls whose tables are tuned. Of two that ask a table the same, the first decides.

    Raises:
        ValueError: see `run_tune`.
    """
    for what, names, known in (("op", ops, OPS), ("dtype", dtypes, DTYPES)):
        for name in names:
            if name not in known:
                raise ValueError(f"tune: unknown {what} {name!r}; expected some of {', '.join(known)}")
    for head_dim in head_dims:
        if not 1 <= head_dim <= _dispatch.MAX_HEAD_DIM:
            raise ValueError(f"tune: head dims are 1 to {_dispatch.MAX_HEAD_DIM}, got {head_dim}")
    return [
        plan_subject(op, is_mixer=False, sizes=sizes, dtype=dtype)
        for op in ops
        for dtype in dtypes
        for sizes in forms(op, head_dims)
    ]


def forms(op: str, head_dims: tuple[int, ...]) -> Iterator[Sizes]:
    """Sizes, where they differ from `profile.calls.OP_SIZES`, at which an op's kernels are most used."""
    for k in head_dims:
        heads = dict(k=k, v=k)
        match op:
            case "causal_attention":
                yield heads
                yield heads | dict(window=512)
                yield heads | dict(t=1, s=32768, g=4)
            case "linear_attention" | "delta_rule":
                for decay in ("head", None, "channel"):
                    yield heads | dict(decay=decay)
                    yield heads | dict(decay=decay, b=1, h=8)
                    yield heads | dict(decay=decay, t=1, b=64, state=True)
            case "generalized_delta_rule":
                yield heads
                yield heads | dict(b=1, h=8)
                yield heads | dict(t=1, b=64, state=True)
            case "polynomial_attention":
                yield dict(v=k)
                yield dict(v=k, b=1, h=8)
                yield dict(v=k, t=1, b=64, state=True)
    match op:
        case "selective_scan":
            yield {}
            yield dict(b=1, d=512)
            yield dict(t=1, b=64, state=True)
        case "linear_recurrence":
            yield {}
            yield dict(b=1, d=256)
            yield dict(t=1, b=64, state=True)
        case "short_conv":
            yield {}
            yield dict(t=1, b=64, state=True)
        case "long_conv":
            for t in (4096, 1024, 64):
                yield dict(t=t, l=t)


def tune_subjects(subjects: list[Subject], bench: Bench, progress: Progress) -> tuple[list[Found], dict[str, str]]:
    """Tune what every subject asks, and store each result when it is found: a kill loses the table it is at.

    Returns:
        What came out for each table, and by subject or table why it could not be tuned.
    """
    found: dict[Asked, Found] = {}
    failures: dict[str, str] = {}
    for subject in progress.track(subjects, description="calls"):
        with _noting(failures, subject.label):
            workload = Workload(subject, bench.device)
            for asked, table in workload.tables.items():
                if asked in found:
                    continue
                search = _Search(workload, asked, table, bench, progress)
                failure = search.failure_of_row()
                if failure:
                    failures[f"{asked} in {subject.label}"] = failure
                else:
                    found[asked] = search.run()
                    _keep(found[asked], table, bench)
    return list(found.values()), failures


@contextmanager
def _noting(failures: dict[str, str], what: str) -> Iterator[None]:
    """What does not compile or fit inside is noted, and others go on. After an invalid access none can."""
    try:
        yield
    except torch.AcceleratorError as error:
        raise LostGPUError(
            f"tune: {what} left the GPU unusable for this process: {error}; please report it. What was found before "
            "is stored"
        ) from None
    except (*backend_failures(), AssertionError) as error:  # launchers assert what their tiles must be
        failures[what] = f"{type(error).__name__}: {error}".partition("\n")[0]


def _keep(found: Found, table: ConfigTable, bench: Bench) -> None:
    if found.config != found.row:
        store_tuned(bench.gpu, found.asked, Tuned(found.config, found.row, round(found.ratio, 4), triton.__version__))
        table.forget()


class Workload:
    """One call of an op with values, what is right for it, and the tables that it asks.

    What is right comes from PyTorch in float64, for the first row of the batch alone: rows do not see one another, and
    where only the first has a gradient flowing back, so have the inputs that all share.
    """

    def __init__(self, subject: Subject, device: torch.device):
        self.subject = subject
        self._call = make_call(subject, device)
        self._passes: dict[Asked, set[str]] = {}
        self.tables: dict[Asked, ConfigTable] = {}
        with recorded() as asked:
            outputs = self._call.forward()
        self._note(asked, "forward")
        self._dy = torch.randn_like(outputs[0])
        self._dy_of_first = torch.zeros_like(self._dy)
        self._dy_of_first[:1] = self._dy[:1]
        if self._call.leaves:
            with recorded() as asked:
                self._backward(outputs)
            self._note(asked, "backward")
        self._exact, self._rounded = self._expected(torch.float64), self._expected(None)

    def runner(self, asked: Asked, config: Config) -> Callable[[], object]:
        """What to time: those passes that ask the table."""
        passes = self._passes[asked]
        with forced(asked, config):
            kept = None if "forward" in passes else self._call.forward()

        def run() -> None:
            with forced(asked, config):
                outputs = kept or self._call.forward()
                if "backward" in passes:
                    self._backward(outputs, retain_graph=kept is not None)

        return run

    def fault(self, asked: Asked, config: Config) -> str | None:
        """What is wrong with the results under a configuration; None if nothing is."""
        with forced(asked, config):
            found, again = (self._results(self._call, self._dy_of_first) for _ in range(2))
        for name, actual in found.items():
            if not torch.equal(bits(actual), bits(again[name])):
                return f"{name} is not the same when repeated"
            shared = name.removeprefix("d") in SHARED
            first = (actual if shared else actual[:1]).double()
            eps = torch.finfo(getattr(torch, self.subject.dtype)).eps
            wrong = over_budget(first, self._exact[name], self._rounded[name], eps)
            if wrong:
                return f"{name}: {wrong}"
        return None

    def _note(self, asked: dict[Asked, ConfigTable], name: str) -> None:
        self.tables |= asked
        for what in asked:
            self._passes.setdefault(what, set()).add(name)

    def _backward(self, outputs: tuple[Tensor, ...], retain_graph: bool = False) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs[0], self._call.leaves, self._dy, retain_graph=retain_graph, allow_unused=True
        )

    @staticmethod
    def _results(call: Call, dy: Tensor) -> dict[str, Tensor]:
        """Outputs and gradients by name."""
        outputs = call.forward()
        found = {name: y.detach() for name, y in zip(("y", "state"), outputs, strict=False)}
        if call.leaves:
            grads = torch.autograd.grad(outputs[0], call.leaves, dy, materialize_grads=True)
            names = [name for name, x in call.inputs.items() if isinstance(x, Tensor) and x.requires_grad]
            found |= {f"d{name}": dx for name, dx in zip(names, grads, strict=True)}
        return found

    def _expected(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """By PyTorch, for the first row of the batch; in the dtypes of the inputs if None."""
        function, inputs = op_function(self.subject.name), {}
        for name, x in self._call.inputs.items():
            if isinstance(x, Tensor):
                one = (x if name in SHARED else x[:1]).detach().clone()
                one = one.to(dtype) if dtype is not None and one.is_floating_point() else one
                x = one.requires_grad_(x.requires_grad)
            inputs[name] = x

        def forward() -> tuple[Tensor, ...]:
            result = function(**inputs, backend="torch")
            return result if isinstance(result, tuple) else (result,)

        leaves = [x for x in inputs.values() if isinstance(x, Tensor) and x.requires_grad]
        dy = self._dy[:1] if dtype is None else self._dy[:1].to(dtype)
        return {name: x.double() for name, x in self._results(Call(forward, inputs, leaves), dy).items()}


class _Search:
    """From the row of one table to the best that is found near it."""

    def __init__(self, workload: Workload, asked: Asked, table: ConfigTable, bench: Bench, progress: Progress):
        self._workload, self._asked, self._table = workload, asked, table
        self._clock, self._progress = bench.clock, progress
        self._architecture = _target.architecture()
        self._row = table.row(self._architecture, asked.dtype, asked.width)
        self._found = Found(asked, workload.subject, self._row, self._row)
        self._seen = [self._row]

    def failure_of_row(self) -> str | None:
        return self._workload.fault(self._asked, self._row)

    def run(self) -> Found:
        found, table = self._found, self._table
        count = len(table.rows) + sum(map(len, table.choices.values()))
        self._task = self._progress.add_task(str(self._asked), total=count)
        for config in table.rows.values():
            self._try(config)
        before = None
        while before != found.config:
            before = found.config
            for keyword, values in table.choices.items():
                for value in values:
                    self._try(found.config | {keyword: value})
        self._progress.remove_task(self._task)
        if found.config != self._row:  # the search favours what was lucky once, so luck is asked again
            new, old = self._time(found.config, self._row)
            found.config = found.config if is_faster(new, old) else self._row
            found.ratio = new.median / old.median if found.config != self._row else 1.0
        return found

    def _try(self, config: Config) -> None:
        """The best so far is this one if it is right and faster."""
        if config in self._seen or ("maxnreg" in config and _target.maker_of(self._architecture) == "hip"):
            return
        found = self._found
        self._seen.append(config)
        found.tried += 1
        self._progress.advance(self._task)
        reasons: dict[str, str] = {}
        with _noting(reasons, f"{self._asked} with {_words(config)}"):
            fault = self._workload.fault(self._asked, config)
            if fault:
                found.rejected[_words(config)] = fault
            elif is_faster(*self._time(config, found.config)):
                found.config = config
        found.rejected |= {_words(config): reason for reason in reasons.values()}

    def _time(self, new: Config, old: Config) -> tuple[Timing, Timing]:
        runs = {"new": self._workload.runner(self._asked, new), "old": self._workload.runner(self._asked, old)}
        timings = time_interleaved(runs, clock=self._clock, budget=SECONDS)
        return timings["new"], timings["old"]


def is_faster(new: Timing, old: Timing) -> bool:
    """By more than noise: the median is 3 % below, and below the fastest sample of what it would replace."""
    return new.median <= FASTER * old.median and new.median < old.minimum


def print_found(found: list[Found], bench: Bench, console: Console) -> None:
    """A row for each table, why configurations were rejected, and where the results are."""
    table = _table(f"tuned on {bench.gpu}", "table", "of", "row", "tuned", "time", "tried", "rejected")
    for x in found:
        tuned = "kept" if x.config == x.row else _words(x.config)
        time = f"{x.ratio:.2f}x" if x.config != x.row else ""
        table.add_row(str(x.asked), x.subject.name, _words(x.row), tuned, time, str(x.tried), str(len(x.rejected)))
    console.print(table)
    for x in found:
        for config, reason in x.rejected.items():
            console.print(f"{x.asked}: rejected {config}: {reason}", markup=False, highlight=False)
    stored = sum(x.config != x.row for x in found)
    console.print(
        f"{stored} of {len(found)} tables tuned, in {TUNED}; `subquad tune --show` lists them, --forget undoes it",
        soft_wrap=True,
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _words(config: Config) -> str:
    return ", ".join(f"{keyword}={value}" for keyword, value in config.items())
