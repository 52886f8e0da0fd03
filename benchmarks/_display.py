"""What the terminal shows while a run goes on: a line for each finished model, and below it the time left."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ._plan import Job


class Display:
    """Progress bars with the time left, on a terminal; elsewhere only the lines."""

    def __init__(self):
        self.console = Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self._one, self._at = None, 0

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def start_measuring(self, count: int) -> None:
        self._measured = self._progress.add_task("speed of each model", total=count)

    def finish_measuring(self, trouble: str | None = None) -> None:
        self._progress.advance(self._measured)
        if trouble is not None:
            self.console.print(trouble)

    def start_training(self, num_steps: int) -> None:
        """`num_steps`: of all trainings that are left."""
        self._progress.remove_task(self._measured)
        self._total = num_steps
        self._all = self._progress.add_task("all steps", total=num_steps)

    def start_model(self, label: str, num_steps: int) -> None:
        """A bar for one training; where many run side by side there is none."""
        self._label, self._at = label, 0
        self._one = self._progress.add_task(label, total=num_steps)

    def on_step(self, step: int, accuracy: float | None) -> None:
        reached = "" if accuracy is None else f" {accuracy:.1%}"
        self._progress.update(self._one, completed=step, description=self._label + reached)
        self._progress.advance(self._all, step - self._at)
        self._at = step

    def finish_model(self, job: Job, record: dict) -> None:
        """Steps that were spared, by an early stop or a failure, leave the total."""
        steps = record.get("steps", self._at)
        self._total -= job.problem.schedule.steps - steps
        self._progress.update(self._all, total=self._total)
        self._progress.advance(self._all, steps - self._at)  # one that was resumed at its end has not shown its steps
        self._at = 0
        if self._one is not None:
            self._progress.remove_task(self._one)
            self._one = None
        self.console.print(f"{job.label}: {_verdict(record)}")


def _verdict(record: dict) -> str:
    if record["kind"] == "recall_failure":
        return f"failed, {record['error']}"
    what = "diverged" if record["diverged"] else f"{record['accuracy']:6.1%} right"
    given_up = ", given up" if record["given_up"] else ""
    return f"{what}{given_up}, {record['steps']} steps, {record['train_seconds']:.1f} s"
