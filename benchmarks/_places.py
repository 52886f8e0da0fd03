"""Where the trials of a sweep run: in this process one after the other, or on a Ray cluster side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from subquad.kernels.levers import Levers

from . import records
from ._display import Display
from ._plan import Job, Plan
from ._trial import failure, levers_of, measure, run_trial, trouble

RETRIES = 3  # of a trial whose worker died; it goes on from its checkpoint


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A Ray cluster, and what each trial takes of it.

    address: "local" starts one on this machine for this run; else what ray.init takes: "auto", or HOST:PORT. All
        nodes must have this package installed, and the folder of the run at the same path.
    cpus, gpus: of a trial. PyTorch uses so many threads.
    """

    address: str = "local"
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self):
        if self.cpus < 1 or self.gpus < 0:
            raise ValueError(
                f"ray: a trial takes at least 1 cpu and no less than 0 gpus, got {self.cpus} and {self.gpus}"
            )


class Here:
    """In this process."""

    def __init__(self, plan: Plan, levers: Levers, display: Display):
        self._plan, self._levers, self._display = plan, levers, display

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """Speeds or what went wrong, one model after the other."""
        return ((job, measure(self._plan, job)) for job in jobs)

    def train(self, jobs: Sequence[Job], speeds: Mapping[str, dict]) -> Iterator[tuple[Job, dict]]:
        """Records, in the order of the jobs."""
        for job in jobs:
            self._display.start_model(job.label, job.problem.schedule.steps)
            on_step = self._display.on_step
            yield job, run_trial(self._plan, job, speeds[job.speed_key], self._levers, on_step)


class OnRay:
    """On the workers of a cluster; used as a context, which it leaves running if it did not start it."""

    def __init__(self, plan: Plan, levers: Levers, cluster: Cluster):
        self._plan = replace(plan, folder=plan.folder.resolve())
        self._matmul, self._cluster = levers.matmul.on, cluster

    def __enter__(self) -> "OnRay":
        import ray

        address = None if self._cluster.address == "local" else self._cluster.address
        ray.init(address, include_dashboard=False if address is None else None, log_to_driver=False)
        takes = dict(num_cpus=self._cluster.cpus, num_gpus=self._cluster.gpus, max_retries=RETRIES)
        self._measure = ray.remote(**takes)(_measure_on_worker)
        self._train = ray.remote(**takes)(_train_on_worker)
        return self

    def __exit__(self, *_) -> None:
        import ray

        ray.shutdown()

    def measure(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict]]:
        """Speeds or what went wrong, one model after the other: nothing else of this run is on the cluster then."""
        import ray

        for job in jobs:
            measuring = self._measure.remote(self._plan, job, self._matmul, self._cluster.cpus)
            try:
                yield job, ray.get(measuring)
            except _deaths() as error:
                yield job, trouble(error)

    def train(self, jobs: Sequence[Job], speeds: Mapping[str, dict]) -> Iterator[tuple[Job, dict]]:
        """Records, as they are finished."""
        import ray

        asked = (self._matmul, self._cluster.cpus)
        waiting = {self._train.remote(self._plan, job, speeds[job.speed_key], *asked): job for job in jobs}
        while waiting:
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(done)
            try:
                record = ray.get(done)
            except _deaths() as error:
                record = failure(self._plan, job, trouble(error))
            record["environment"]["command"] = records.command()  # not the worker's, which says nothing
            yield job, record


def _deaths() -> tuple[type[Exception], ...]:
    """What Ray says when a worker did not live to tell."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    return WorkerCrashedError, OutOfMemoryError, NodeDiedError


def _measure_on_worker(plan: Plan, job: Job, matmul: bool, threads: int) -> dict:
    torch.set_num_threads(threads)  # before the levers: what they probe depends on it
    with levers_of(plan, matmul):
        return measure(plan, job)


def _train_on_worker(plan: Plan, job: Job, throughput: dict, matmul: bool, threads: int) -> dict:
    torch.set_num_threads(threads)
    with levers_of(plan, matmul) as levers:
        return run_trial(plan, job, throughput, levers)
