"""Records as `subquad recall` writes them, with numbers of the size that its default recipe gives."""

import json
import math
from pathlib import Path

# name: accuracy, bytes of state at d_model 64, microseconds per token and per 1000 tokens of context
MIXERS = {
    "attention": (0.997, 131072, 310, 95),
    "sliding_window": (0.21, 16384, 330, 0),
    "linear_attention": (0.78, 16896, 280, 0),
    "based": (0.985, 39168, 420, 0),
    "rebased": (0.93, 34816, 410, 0),
    "base_conv": (0.44, 65536, 350, 60),
    "hyena": (0.61, 98304, 520, 150),
    "hybrid": (0.992, 47360, 460, 0),
}
TASK = {"name": "mqar", "vocab_size": 256, "power": 0.01}
TESTS = ((64, 4), (128, 8), (128, 16))
CONTEXTS = (256, 1024, 4096)


def make_record(mixer: str, *, d_model: int = 64, lr: float = 1e-2, seed: int = 0, **changes) -> dict:
    """One finished run; `changes` replaces whole keys."""
    best, state_bytes, base, per_thousand = MIXERS[mixer]
    accuracy = best * math.exp(-((math.log10(lr) + 2) ** 2) / 2) * (1 - 0.01 * seed)
    segments = [
        {
            "label": f"{num_pairs} in {seq_len}",
            "seq_len": seq_len,
            "num_pairs": num_pairs,
            "accuracy": accuracy ** (1 + index / 4),
        }
        for index, (seq_len, num_pairs) in enumerate(TESTS)
    ]
    scale = d_model / 64
    return {
        "kind": "recall",
        "job": f"{mixer}-d{d_model}-lr{lr:g}-seed{seed}",
        "recipe": "quick",
        "mixer": mixer,
        "baseline": mixer == "attention",
        "options": {"num_heads": 2},
        "model": {"d_model": d_model, "num_layers": 2, "num_parameters": int(60000 * scale**2)},
        "task": TASK,
        "lr": lr,
        "seed": seed,
        "steps": 400,
        "accuracy": sum(segment["accuracy"] for segment in segments) / len(segments),
        "segments": segments,
        "loss_curve": [[step, 5.5 * math.exp(-accuracy * step / 120)] for step in range(20, 401, 20)],
        "accuracy_curve": [[step, accuracy * step / 400] for step in range(20, 401, 20)],
        "diverged": False,
        "state_bytes": int(state_bytes * scale),
        "train_seconds": 21.5,
        "throughput": {
            "train_tokens_per_second": 3.1e5 / (base / 300) / scale,
            "prefill_tokens_per_second": 9.4e5 / (base / 300) / scale,
            "decode": [
                {
                    "context": context,
                    "ms_per_token": (base + per_thousand * context / 1000) * 1e-3 * scale**0.3,
                    "state_bytes": int(state_bytes * scale),
                }
                for context in CONTEXTS
            ],
        },
        "levers": {"matmul": {"on": False, "why": "amx_tile"}, "allocator": {"on": True, "why": "glibc 2.36"}},
        "environment": {
            "machine": {"cpu": "Some CPU", "gpu": None, "cores": 2, "threads": 2, "os": "Linux"},
            "versions": {"python": "3.11.7", "torch": "2.13.0", "triton": "3.7.1", "subquad": "0.1.0"},
            "commit": "0123456789abcdef",
            "seed": seed,
            "command": ["subquad", "recall"],
        },
    } | changes


def write_records(folder: Path, records: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def quick_run(folder: Path) -> Path:
    """Every mixer at one width, three learning rates and two seeds."""
    grid = [(mixer, lr, seed) for mixer in MIXERS for lr in (1e-3, 1e-2, 3e-2) for seed in (0, 1)]
    return write_records(folder, [make_record(mixer, lr=lr, seed=seed) for mixer, lr, seed in grid])
