"""`subquad recall`, `text`, `report` and `list`."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from ._reading import INTERRUPTED, UsageError, finish, need_packages, read_names, read_numbers


def recall(
    mixers: str = "",
    recipe: str = "quick",
    tasks: str = "",
    seq_lens: str = "",
    pairs: str = "",
    d_model: str = "",
    steps: int | None = None,
    lrs: str = "",
    seeds: str = "",
    give_up_after: float | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    out: Path | None = None,
    resume: bool = False,
    ray: str | None = None,
    cpus: int = 1,
    gpus: float = 0.0,
    track: str | None = None,
) -> int:
    """Train mixers on recall and other tasks beside attention; measure their state and speed; draw the frontier.

    Ends with a table and the paths of records.jsonl, frontier.png and report.html. Lists are separated by commas.

    Args:
        mixers: which ones, e.g. attention,based; those of the recipe if empty. `subquad list` names them.
        recipe: the setting; what follows replaces its own. `subquad list` names them.
        tasks: one model for each, e.g. "dyck, copying(num_tokens=16)". `subquad list` names them with their fields.
        seq_lens: lengths of MQAR's sequences, e.g. 64,128.
        pairs: numbers of MQAR's key-value pairs, one for each length.
        d_model: widths of every mixer, e.g. 32,64.
        steps: updates of each training.
        lrs: learning rates, e.g. 1e-3,1e-2.
        seeds: trainings of each model, e.g. 0,1,2.
        give_up_after: stop trainings that are near chance after this share of their steps, e.g. 0.5.
        device: auto is CUDA where there is one.
        dtype: bfloat16 means autocast; parameters stay float32.
        out: folder to write to; a new one under runs/ if not given.
        resume: go on with an interrupted run: the one in `out`, or the newest of this recipe under runs/. Trainings
            that failed are tried again.
        ray: run trainings side by side on a Ray cluster: "local" for one on this machine, "auto", or HOST:PORT.
        cpus: of each training on a cluster.
        gpus: of each training on a cluster.
        track: also write finished trainings to tensorboard, wandb, mlflow or trackio.
    """
    if ray is not None:
        need_packages("recall --ray", "ray", "ray")
    from subquad.benchmarks.recall import Cluster, parse_tasks, plan_recall, run_recall
    from subquad.benchmarks.report import print_table, write_report
    from subquad.benchmarks.trackers import tracker

    asked = {
        "mixers": read_names(mixers),
        "seq_lens": read_numbers("seq-lens", seq_lens),
        "pairs": read_numbers("pairs", pairs),
        "d_models": read_numbers("d-model", d_model),
        "lrs": read_numbers("lrs", lrs, float),
        "seeds": read_numbers("seeds", seeds),
        "steps": steps,
        "give_up_after": give_up_after,
    }
    try:
        cluster = None if ray is None else Cluster(address=ray, cpus=cpus, gpus=gpus)
        tracked = None if track is None else tracker(track)
        asked["tasks"] = parse_tasks(tasks)
        plan = plan_recall(recipe=recipe, device=device, dtype=dtype, out=out, resume=resume, **asked)
    except ValueError as error:
        raise UsageError(error) from None
    try:
        run_recall(plan, cluster, tracked)
    except KeyboardInterrupt:
        print(f"subquad: interrupted; go on with the same options and --resume --out {plan.folder}", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        again = f"go on with the same options and --resume --out {plan.folder}"
        raise UsageError(f"recall: stopped by {error}; what was finished is kept; {again}") from None
    try:
        finish(plan.folder, write_report(plan.folder), print_table)
    except ValueError as error:  # where every training failed there is nothing to draw
        raise UsageError(error) from None
    return 0


def text(
    folder: Path | None = None,
    /,
    mixers: str = "",
    tokens: Literal["bpe", "bytes"] = "bpe",
    vocab_size: int = 4096,
    seq_len: int = 256,
    d_model: int = 128,
    num_layers: int = 2,
    batch_size: int = 16,
    steps: int = 2000,
    lrs: str = "",
    seeds: str = "",
    held_out_windows: int = 256,
    max_bigram_count: int = 1250,
    out: Path = Path("runs/text"),
    resume: bool = False,
) -> int:
    """Train a small language model of real text with each mixer; say how much of the gap to attention is recall.

    Args:
        folder: of text, or a file; the source of Python's standard library if not given.
        mixers: which ones, e.g. attention,based. `subquad list` names them.
        tokens: byte-level BPE that is learned from the text, or bytes.
        vocab_size: of BPE.
        seq_len: context.
        d_model: width.
        num_layers: layers.
        batch_size: sequences of a step.
        steps: updates of each training.
        lrs: learning rates, e.g. 1e-3,3e-3; the best is reported.
        seeds: trainings of each model and learning rate.
        held_out_windows: of held-out text, on which perplexity is measured.
        max_bigram_count: a bigram that is more frequent in the training text is no recall hit.
        out: folder to write records to.
        resume: go on with what `out` holds.
    """
    if tokens == "bpe":
        need_packages("text --tokens bpe", "bench", "tokenizers")
    from subquad.benchmarks import records
    from subquad.benchmarks.language import LanguageSettings, language_table, run_language

    asked = dict(tokens=tokens, vocab_size=vocab_size, seq_len=seq_len, d_model=d_model, num_layers=num_layers)
    asked |= dict(batch_size=batch_size, steps=steps, held_out_windows=held_out_windows)
    asked |= dict(max_bigram_count=max_bigram_count)
    lists = dict(mixers=read_names(mixers), lrs=read_numbers("lrs", lrs, float), seeds=read_numbers("seeds", seeds))
    asked |= {name: given for name, given in lists.items() if given}
    try:
        for record in run_language(LanguageSettings(**asked), out, text=folder, resume=resume):
            print(f"{record['job']}: {record['nats']['all']:.3f} nats a token, {record['train_seconds']:.0f} s")
    except (ValueError, OSError) as error:
        raise UsageError(error) from None
    except KeyboardInterrupt:
        print(f"subquad: interrupted; go on with the same options and --resume --out {out}", file=sys.stderr)
        return INTERRUPTED
    print(language_table([record for record in records.read(out) if record["kind"] == "text"]))
    print(f"wrote {out / records.FILE_NAME}")
    return 0


def report(folder: Path, /, markdown: bool = False, latex: bool = False) -> int:
    """Make the table, the pictures (PNG and SVG) and report.html again from a folder's records alone.

    Args:
        folder: what `subquad recall` wrote to.
        markdown: print the table as markdown instead, and write nothing.
        latex: print the table for LaTeX with booktabs instead, and write nothing.
    """
    from subquad.benchmarks.report import latex_table, markdown_table, print_table, write_report

    if markdown and latex:
        raise UsageError("report: --markdown and --latex exclude each other")
    try:
        if markdown or latex:
            print(markdown_table(folder) if markdown else latex_table(folder))
            return 0
        written = write_report(folder)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(error) from None
    finish(folder, written, print_table)
    return 0


def list_names() -> int:
    """Name the ops, mixers, recipes, and tasks with their fields."""
    from subquad.benchmarks.recipes import RECIPES
    from subquad.benchmarks.tasks import TASKS
    from subquad.kernels import OPS
    from subquad.mixers import HYBRIDS, MIXERS

    rooms = {"ops": OPS, "mixers": MIXERS, "hybrids": HYBRIDS, "recipes": RECIPES}
    for room, names in rooms.items():
        print(f"{room:9}{', '.join(names)}")
    print("tasks")
    for name, task in TASKS.items():
        print(f"  {name}({', '.join(f'{field.name}={field.default!r}' for field in dataclasses.fields(task))})")
    return 0
