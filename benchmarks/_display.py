"""What the terminal shows while a run goes on: a line for each finished model, and below it the time left."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def start_measuring(self, count: int) -> None:
        self._measured = self._progress.add_task("speed of each model", total=count)

    def finish_measuring(self) -> None:
        self._progress.advance(self._measured)

    def start_training(self, num_steps: int) -> None:
        """`num_steps`: of all trainings that are left."""
        self._progress.remove_task(self._measured)
        self._total = num_steps
        self._all = self._progress.add_task("all steps", total=num_steps)

    def start_model(self, label: str, num_steps: int) -> None:
        self._label, self._num_steps, self._at = label, num_steps, 0
        self._one = self._progress.add_task(label, total=num_steps)

    def on_step(self, step: int, accuracy: float | None) -> None:
        reached = "" if accuracy is None else f" {accuracy:.1%}"
        self._progress.update(self._one, completed=step, description=self._label + reached)
        self._progress.advance(self._all, step - self._at)
        self._at = step

    def finish_model(self, record: dict) -> None:
        # A training that stopped early takes the steps it spared from the total; one that was resumed at its end
        # has not shown its steps yet.
        self.on_step(record["steps"], record["accuracy"])
        self._total -= self._num_steps - record["steps"]
        self._progress.update(self._all, total=self._total)
        self._progress.remove_task(self._one)
        verdict = "diverged" if record["diverged"] else f"{record['accuracy']:6.1%} recalled"
        self.console.print(f"{self._label}: {verdict}, {record['steps']} steps, {record['train_seconds']:.1f} s")
