"""How fast tasks draw examples, beside the training step they feed: `python -m subquad.benchmarks.task_speed`.

One line for each task: rows a second, and the time of a batch as a share of the time of a training step on it, both
medians over turns. The step is of the smallest model that is compared, two layers of attention of width 64.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from subquad.mixers import build_layers

from . import records
from .model import TinyLM
from .tasks import MQAR, TASKS, Task
from .training import seeded_model, stream, update

BATCH = 64
TURNS = 9
LARGE = MQAR(seq_len=256, num_pairs=64)
NUM_LARGE = 100_000


def measure_task(task: Task) -> dict:
    """Rows a second, and the share of a training step that drawing its batch takes."""
    model = seeded_model(
        lambda: TinyLM(build_layers("attention", 64, 2), 64, task.vocab_size, bottleneck=task.bottleneck), 0
    )
    optimizer, generator = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True), stream(0, 0)
    drawing, training = [], []
    for _ in range(TURNS):
        started = time.perf_counter()
        batch = task.sample(BATCH, generator)
        batch = batch.with_next_tokens() if task.every_token else batch
        drawn = time.perf_counter()
        update(model, optimizer, batch, 1.0, torch.float32).item()
        drawing.append(drawn - started)
        training.append(time.perf_counter() - drawn)
    draw, step = statistics.median(drawing), statistics.median(training)
    return {"task": type(task).__name__, "rows_per_second": BATCH / draw, "share_of_a_step": draw / step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder to write records to")
    asked = parser.parse_args()
    environment = records.environment(torch.device("cpu"), 0)
    started = time.perf_counter()
    LARGE.sample(NUM_LARGE, stream(0, 0))
    seconds = time.perf_counter() - started
    print(f"{NUM_LARGE:,} rows of {LARGE.label}: {seconds:.1f} s")
    found = [{"kind": "task_speed", "task": LARGE.label, "rows": NUM_LARGE, "seconds": seconds}]
    for name, task in TASKS.items():
        measured = measure_task(task())
        print(f"{name:22} {measured['rows_per_second']:9,.0f} rows/s  {measured['share_of_a_step']:6.1%} of a step")
        found.append({"kind": "task_speed", **measured})
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        for record in found:
            records.append(asked.out, record | {"environment": environment})


if __name__ == "__main__":
    main()
