"""`subquad throughput`: how fast mixers train, read a prompt and decode, and what their state weighs meanwhile."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from subquad.kernels.levers import cpu_levers, matmul_lever
from subquad.mixers import HYBRIDS, MIXERS, build_layers, known_options, specs_of, state_bytes

from . import records
from .model import ModelState, TinyLM
from .tasks import Batch
from .timing import Clock, Sample, clock_for, summarize, time_interleaved
from .training import update

TOKENS_PER_ANSWER = 16  # as in recall of 4 pairs in 64 tokens; elsewhere the head is not computed
SAMPLES = 5
DECODE_STEPS = 16  # in one sample: long enough for the clock, short enough for the context to stay what it is called
SHARE_OF_TRAINING, SHARE_OF_PREFILL = 0.4, 0.2  # of the budget; decoding has the rest
CLIP_NORM = 1.0
VOCAB_SIZE = 8192
RESULTS = Path("benchmarks/results")


def run_throughput(
    *,
    ops: bool = False,
    mixers: Sequence[str] = (),
    device: str = "auto",
    out: Path | None = None,
    only: Sequence[str] = (),
    d_model: int = 128,
    num_layers: int = 2,
    seq_len: int = 1024,
    batch: int = 4,
    contexts: Sequence[int] = (512, 4096, 16384),
) -> int:
    """Measure the mixers, or with `ops` every op beside the form it replaces; print tables and append records.

    Args:
        ops: measure ops; then `only` applies, and without it the arguments after it.
        mixers: names in MIXERS or HYBRIDS; all if empty.
        device: "cpu", "cuda", or "auto" for CUDA where there is one.
        out: file of JSON lines; by default one in benchmarks/results/.
        only: measures ("speed", "length", "memory") and ops to which to keep.
        d_model, num_layers: size of the model.
        seq_len, batch: tokens and rows in training and prefill.
        contexts: numbers of tokens after which decoding is timed.

    Returns:
        0, an exit code.

    Raises:
        ValueError: unknown names, sizes that cannot be, or no such device.
    """
    chosen = _device(device)
    if ops:
        from .op_throughput import run_op_throughput

        environment = records.environment(chosen, seed=0)
        run_op_throughput(
            device=chosen, out=out or RESULTS / "op_throughput.jsonl", environment=environment, only=tuple(only)
        )
        return 0
    sizes = {"d_model": d_model, "num_layers": num_layers, "seq_len": seq_len, "batch": batch, "contexts": contexts}
    measured = run_mixer_throughput(mixers, chosen, out or RESULTS / "throughput.jsonl", sizes)
    Console().print(make_table(measured, contexts))
    return 0


def run_mixer_throughput(mixers: Sequence[str], device: torch.device, out: Path, sizes: dict) -> list[dict]:
    """One record for each mixer, appended to `out` as soon as it is measured; all under the levers of the CPU."""
    known = (*MIXERS, *HYBRIDS)
    if unknown := [name for name in mixers if name not in known]:
        raise ValueError(f"throughput: unknown mixer {', '.join(unknown)}; expected some of {', '.join(known)}")
    timing = {name: sizes[name] for name in ("seq_len", "batch", "contexts")}
    longest = max(sizes["seq_len"], max(sizes["contexts"]) + 1 + DECODE_STEPS)
    models = {name: partial(_build, name, sizes["d_model"], sizes["num_layers"], longest) for name in mixers or known}
    for build in models.values():
        with torch.device("meta"):  # what cannot be built is refused before anything is measured
            build()
    out.parent.mkdir(parents=True, exist_ok=True)
    measured = []
    on_cpu = device.type == "cpu"
    with out.open("a") as file, cpu_levers(matmul=on_cpu, allocator=on_cpu) as levers:
        for name, build in track(models.items(), "measuring"):
            record = {"kind": "throughput", "mixer": name, "sizes": sizes}
            record |= {"throughput": measure_model(build().to(device), device=device, **timing)}
            measured.append(record | {"levers": asdict(levers), "environment": records.environment(device, seed=0)})
            file.write(json.dumps(measured[-1]) + "\n")
            file.flush()
    return measured


def make_table(measured: list[dict], contexts: Sequence[int]) -> Table:
    table = Table(title="throughput by mixer", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("mixer", no_wrap=True)
    for heading in ("train\ntok/s", "prefill\ntok/s", *(f"decode\nms at {context}" for context in contexts)):
        table.add_column(heading, justify="right", vertical="bottom")
    table.add_column(f"state\nKiB at {max(contexts)}", justify="right", vertical="bottom")
    for record in measured:
        result = record["throughput"]
        table.add_row(
            record["mixer"],
            f"{result['train_tokens_per_second']:,.0f}",
            f"{result['prefill_tokens_per_second']:,.0f}",
            *(f"{point['ms_per_token']:.3f}" for point in result["decode"]),
            f"{max(result['decode'], key=lambda point: point['context'])['state_bytes'] / 1024:,.1f}",
        )
    return table


def measure_model(
    model: TinyLM,
    *,
    seq_len: int,
    batch: int,
    contexts: Sequence[int],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    budget: float = 4.0,
) -> dict:
    """Time one model where it will be used. Its parameters and its training mode are left as they were.

    Args:
        model: on `device`.
        seq_len: tokens of a row in training and prefill.
        batch: rows in training and prefill; decoding has one.
        contexts: numbers of tokens after which decoding is timed.
        device: the model's.
        dtype: float32, or bfloat16 for autocast.
        budget: seconds to spend; every number has at least one sample whatever it takes.

    Returns:
        train_tokens_per_second: forward, backward and optimiser, one answer to 16 tokens.
        prefill_tokens_per_second: logits after the last token and the state.
        decode: for each context, ms_per_token of one sequence in steady state (the step in which a cache grows
            is left out) and state_bytes, the size of the tensors in the state of one sequence.

    Raises:
        ValueError: a size below 1, or contexts past the positions that the model has learned.
    """
    _check(model, seq_len, batch, contexts)
    clock = clock_for(device)
    tokens = torch.randint(model.vocab_size, (batch, seq_len), generator=torch.Generator().manual_seed(0)).to(device)
    was_training = model.training
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        decode_budget = budget * (1 - SHARE_OF_TRAINING - SHARE_OF_PREFILL)
        result = {
            "train_tokens_per_second": _time_training(model, tokens, clock, dtype, budget * SHARE_OF_TRAINING),
            "prefill_tokens_per_second": _time_prefill(model, tokens, clock, budget * SHARE_OF_PREFILL),
            "decode": _time_decoding(model, contexts, device, clock, decode_budget),
        }
    model.train(was_training)
    return result


def _time_training(model: TinyLM, tokens: Tensor, clock: Clock, dtype: torch.dtype, budget: float) -> float:
    """Tokens per second of the trainer's own update, with a learning rate of 0 so that nothing is learned."""
    positions = torch.arange(0, tokens.numel(), TOKENS_PER_ANSWER, device=tokens.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    step = partial(update, model.train(), optimizer, Batch(tokens, tokens, positions), CLIP_NORM, dtype)
    timing = time_interleaved({"train": step}, clock=clock, samples=SAMPLES, budget=budget)["train"]
    model.zero_grad()
    return tokens.numel() / timing.median


def _time_prefill(model: TinyLM, tokens: Tensor, clock: Clock, budget: float) -> float:
    model.eval()
    with torch.inference_mode():
        prefill = {"prefill": partial(model.prefill, tokens)}
        timing = time_interleaved(prefill, clock=clock, samples=SAMPLES, budget=budget)["prefill"]
    return tokens.numel() / timing.median


@torch.inference_mode()
def _time_decoding(
    model: TinyLM, contexts: Sequence[int], device: torch.device, clock: Clock, budget: float
) -> list[dict]:
    """The contexts take turns, so that their ratios hold on a machine whose speed changes.

    Every sample starts from the same state, so a context does not grow from one sample to the next.
    """
    model.eval()
    prompt = torch.randint(model.vocab_size, (1, max(contexts)), generator=torch.Generator().manual_seed(0)).to(device)
    token = prompt[:, 0]
    prefilled = {context: model.prefill(prompt[:, :context])[1] for context in contexts}
    samples: dict[int, list[Sample]] = {context: [] for context in contexts}
    deadline = time.perf_counter() + budget
    # Products of one row are slower by the lever's route; what decodes in earnest switches it off as well.
    with matmul_lever(False):
        for before in prefilled.values():
            _decode(model, token, before)  # first calls plan and touch fresh memory
        for turn in range(SAMPLES):
            if turn and time.perf_counter() > deadline:
                break
            for context, before in prefilled.items():
                _, state = model.step(token, before)  # makes room in the caches
                samples[context].append(clock.measure(partial(_decode, model, token, state), 1))
    return [
        {
            "context": context,
            "ms_per_token": summarize(samples[context]).median * 1e3 / DECODE_STEPS,
            "state_bytes": sum(state_bytes(mixer) for mixer in before.mixers),
        }
        for context, before in prefilled.items()
    ]


def _decode(model: TinyLM, token: Tensor, state: ModelState) -> None:
    for _ in range(DECODE_STEPS):
        _, state = model.step(token, state)


def _check(model: TinyLM, seq_len: int, batch: int, contexts: Sequence[int]) -> None:
    if not contexts:
        raise ValueError("throughput: contexts must name at least one length, got none")
    for name, sizes in (("seq_len", [seq_len]), ("batch", [batch]), ("contexts", contexts)):
        if min(sizes) < 1:
            raise ValueError(f"throughput: {name} must be at least 1, got {min(sizes)}")
    longest = max(seq_len, max(contexts) + 1 + DECODE_STEPS)
    if 0 < model.num_positions < longest:
        raise ValueError(
            f"throughput: the model has learned num_positions={model.num_positions}, but decoding goes up to token "
            f"{longest}; give it more positions or shorter contexts"
        )


def _build(name: str, d_model: int, num_layers: int, longest: int) -> TinyLM:
    """A model of one mixer, or of a hybrid with at least one period of it."""
    specs = specs_of(name)
    takes_length = any("max_length" in known_options(spec.name) for spec in specs)
    options = {"max_length": longest} if takes_length else {}
    layers = build_layers(name, d_model, max(num_layers, len(specs)), **options)
    return TinyLM(layers, d_model, VOCAB_SIZE)


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"throughput: unknown device {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("throughput: device 'cuda' was asked for, but PyTorch sees no GPU here; use cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
