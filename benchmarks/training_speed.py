"""How much faster one step of our trainer is than the published trainer's way, on the model of Zoology's figure 2.

Run with: python -m subquad.benchmarks.training_speed
"""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from subquad.kernels.levers import cpu_levers
from subquad.mixers import MixerSpec, build_layers

from . import records
from .model import TinyLM
from .tasks import MQAR, NO_ANSWER, Batch
from .timing import Timing, clock_for, time_interleaved
from .training import seeded_model, stream, update

GOAL = 12.0  # times faster on a CPU
TASK = MQAR(num_pairs=4, seq_len=64, vocab_size=8192, random_non_queries=False)
BATCH_SIZE, D_MODEL, NUM_LAYERS = 512, 64, 2
LR, CLIP_NORM = 1e-3, 1.0
MAX_GRADIENT_DIFFERENCE = 1e-4  # relative; the two differ only in the order of float32 sums


def main() -> int:
    """Print the ratios and add them to the records; the exit code tells whether the first reached the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5, help="undisturbed samples of each way (default 5)")
    parser.add_argument("--out", type=Path, default=Path("runs/training-speed"), help="folder of the record")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    plain = time_both(options.samples)
    with cpu_levers() as levers:
        levered = time_both(options.samples)
    result = {
        "ratio": plain["published"].median / plain["ours"].median,
        "ratio_levers_for_both": levered["published"].median / levered["ours"].median,
        "ratio_levers_for_ours": plain["published"].median / levered["ours"].median,
        "goal": GOAL,
        "plain": {name: asdict(timing) for name, timing in plain.items()},
        "levers": {name: asdict(timing) for name, timing in levered.items()},
        "switched": asdict(levers),
        "environment": records.environment(torch.device("cpu"), seed=0),
    }
    records.append(options.out, {"kind": "training_speed", **result})
    print(
        f"one step of figure 2 (V {TASK.vocab_size}, t {TASK.seq_len}, {TASK.num_pairs} pairs, d {D_MODEL}, "
        f"{NUM_LAYERS} layers, batch {BATCH_SIZE}, attention), {torch.get_num_threads()} threads\n"
        f"  default settings  published {_seconds(plain, 'published')}, ours {_seconds(plain, 'ours')}: "
        f"{result['ratio']:.1f} times faster (goal {GOAL:g})\n"
        f"  levers for both   published {_seconds(levered, 'published')}, ours {_seconds(levered, 'ours')}: "
        f"{result['ratio_levers_for_both']:.1f} times faster\n"
        f"  levers for ours alone: {result['ratio_levers_for_ours']:.1f} times faster\n"
        f"wrote {options.out / records.FILE_NAME}"
    )
    return 0 if result["ratio"] >= GOAL else 1


def time_both(samples: int) -> dict[str, Timing]:
    """Time one step each way in one round-robin, after the gradients were found to be the same."""
    batch = TASK.sample(BATCH_SIZE, stream(0, 0))
    published, ours = build("reference"), build("auto")
    check_same_gradients(published, ours, batch)
    runs = {
        "published": partial(published_update, published, torch.optim.AdamW(published.parameters(), LR), batch),
        "ours": partial(our_update, ours, torch.optim.AdamW(ours.parameters(), LR, fused=True), batch),
    }
    return time_interleaved(runs, clock=clock_for(torch.device("cpu")), samples=samples, budget=120)


def _seconds(timings: dict[str, Timing], name: str) -> str:
    return f"{timings[name].median:.3f} s"


def build(backend: str) -> TinyLM:
    """The published model: attention alone, one head, learned positions. The reference is plain PyTorch."""
    spec = MixerSpec("attention", {"num_heads": 1, "rotary_base": None, "backend": backend})
    mixers = partial(build_layers, spec, D_MODEL, NUM_LAYERS)
    return seeded_model(lambda: TinyLM(mixers(), D_MODEL, TASK.vocab_size, num_positions=TASK.seq_len), seed=0)


def published_update(model: TinyLM, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    published_loss(model, batch).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()


def published_loss(model: TinyLM, batch: Batch) -> torch.Tensor:
    """Logits at every position, and a loss that ignores most of them."""
    logits = model.logits(model(batch.inputs))
    return F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=NO_ANSWER)


def our_update(model: TinyLM, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    update(model, optimizer, batch, CLIP_NORM, torch.float32)


def check_same_gradients(published: TinyLM, ours: TinyLM, batch: Batch) -> None:
    """Faster is only worth something if the step is the same."""
    published_loss(published, batch).backward()
    our_update(ours, torch.optim.SGD(ours.parameters(), lr=0.0), batch)
    torch.nn.utils.clip_grad_norm_(published.parameters(), CLIP_NORM)
    for (name, parameter), expected in zip(ours.named_parameters(), published.parameters(), strict=True):
        difference = ((parameter.grad - expected.grad).norm() / expected.grad.norm()).item()
        assert difference < MAX_GRADIENT_DIFFERENCE, f"gradient of {name} differs by {difference:.1e}"


if __name__ == "__main__":
    raise SystemExit(main())
