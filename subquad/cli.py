"""The command line: `subquad recall`, `swap`, `linearize`, `throughput`, `profile`, `report`, `check`, `tune`, `list`.

What a subcommand needs is imported when it runs: --help waits for no plotting library.
"""

import ast
import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Literal

EXTRAS = ("tyro", "rich", "matplotlib", "plotly")  # what the extra [bench] installs
MISUSE, INTERRUPTED = 2, 130  # exit codes, as shells know them


class UsageError(Exception):
    """What was asked for cannot be done; the message is all that the user needs."""


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand and return the exit code."""
    try:
        _need_extras()
        import tyro

        commands = {"recall": recall, "throughput": throughput, "profile": profile, "report": report, "check": check}
        commands |= {"swap": swap, "linearize": linearize, "tune": tune, "list": list_names}
        code = tyro.extras.subcommand_cli_from_dict(
            commands, prog="subquad", description="Sequence mixers measured beside attention.", args=arguments
        )
        return code or 0
    except UsageError as error:
        print(f"subquad: {error}", file=sys.stderr)
        return MISUSE


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
    if ray is not None and importlib.util.find_spec("ray") is None:
        raise UsageError("recall: --ray needs ray; install with: pip install 'subquad[ray]'")
    from subquad.benchmarks.recall import Cluster, parse_tasks, plan_recall, run_recall
    from subquad.benchmarks.report import print_table, write_report
    from subquad.benchmarks.trackers import tracker

    asked = {
        "mixers": _names(mixers),
        "seq_lens": _numbers("seq-lens", seq_lens),
        "pairs": _numbers("pairs", pairs),
        "d_models": _numbers("d-model", d_model),
        "lrs": _numbers("lrs", lrs, float),
        "seeds": _numbers("seeds", seeds),
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
    _finish(plan.folder, write_report(plan.folder), print_table)
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
    _finish(folder, written, print_table)
    return 0


def throughput(
    ops: bool = False,
    mixers: str = "",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    out: Path | None = None,
    only: str = "",
    d_model: int = 128,
    num_layers: int = 2,
    seq_len: int = 1024,
    batch: int = 4,
    contexts: str = "512,4096,16384",
) -> int:
    """Measure how fast mixers train, read a prompt and decode; or, with --ops, every op beside what it replaces.

    Args:
        ops: measure ops; of the options below, --only, --device and --out apply.
        mixers: which ones, e.g. attention,based; all if empty.
        device: auto is CUDA where there is one.
        out: file of JSON lines to add to; one in benchmarks/results/ if not given.
        only: with --ops, the measures (speed, length, memory) and ops to keep to.
        d_model: width of the model.
        num_layers: layers of the model.
        seq_len: tokens of a row in training and prefill.
        batch: rows in training and prefill.
        contexts: numbers of tokens after which decoding is timed.
    """
    from subquad.benchmarks.throughput import run_throughput

    sizes = {"d_model": d_model, "num_layers": num_layers, "seq_len": seq_len, "batch": batch}
    try:
        return run_throughput(
            ops=ops,
            mixers=_names(mixers),
            device=device,
            out=out,
            only=_names(only),
            contexts=_numbers("contexts", contexts),
            **sizes,
        )
    except ValueError as error:
        raise UsageError(error) from None


def check(
    static: bool = False,
    ops: str = "",
    device: str = "auto",
    case: str = "",
    targets: str = "",
    triton: str = "",
    update: bool = False,
    fast: bool = False,
) -> int:
    """Compare every kernel with its reference on your own device, forward and backward; report the errors.

    On a GPU also run each case 250 times for equal bits, and go beyond 2^31 elements and 65,535 programs. The report
    is markdown, to be pasted into an issue.

    With --static instead compile the kernels for GPUs that need not be there, and fail on an error, a spill in a hot
    loop (but of float32), too much shared memory, and on what is above the budget stored in benchmarks/results/.

    Args:
        static: compile instead of running; the options below other than --ops and --device go with it.
        ops: which ones, e.g. short_conv,long_conv; all if empty.
        device: auto is CUDA where there is one; or cpu, cuda, cuda:1.
        case: only this one, as the report names it; without --static.
        targets: GPUs, e.g. a100,h100; all that the model knows if empty.
        triton: a version, or a folder that holds Triton; the installed one and then the newest if empty.
        update: store what is found as the new budget. What is unchanged since it was stored is not compiled again.
        fast: only one call of each op, for one target.
    """
    from subquad.kernels import OPS

    names = _names(ops) or OPS
    try:
        if static:
            from subquad.benchmarks.profile.targets import GPUS
            from subquad.benchmarks.static import run_static

            asked = {"targets": _names(targets) or tuple(GPUS), "triton": triton or None}
            return run_static(ops=names, update=update, fast=fast, **asked)
        if targets or triton or update or fast:
            raise ValueError("check: --targets, --triton, --update and --fast go with --static")
        from subquad.benchmarks.check import run_check

        return run_check(ops=names, device=device, case=case)
    except ValueError as error:
        raise UsageError(error) from None


def profile(
    name: str,
    /,
    target: Literal["a100", "h100", "b200", "l40s", "mi300"] | None = None,
    mixer: bool = False,
    sizes: str = "",
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16",
    out: Path | None = None,
) -> int:
    """Measure every kernel of an op on your GPU, beside the published forms that are installed.

    With --target instead a model of a GPU that need not be there: what the kernels compile to and move, and a lower
    bound of their time; nothing is run. Ends with a table and the paths of the record, of a roofline and of traces.

    Args:
        name: which op, e.g. linear_attention. `subquad list` names them.
        target: the GPU to model.
        mixer: the name is that of a mixer.
        sizes: in place of the usual, e.g. b=4,t=4096,h=16,k=128,v=128,decay=head or, of a mixer, d_model=2048. One
            token is decoded: t=1 with state=True, with s=65536 keys, or of a mixer after past=4096 tokens.
        dtype: of the inputs.
        out: folder whose records.jsonl gets a line; runs/profile if not given.
    """
    from subquad.benchmarks.profile import run_profile
    from subquad.kernels import BackendError

    try:
        return run_profile(name, target=target, mixer=mixer, sizes=_sizes("sizes", sizes), dtype=dtype, out=out)
    except (ValueError, BackendError) as error:
        raise UsageError(error) from None


def tune(
    ops: str = "",
    dtypes: str = "bfloat16",
    head_dims: str = "64,128",
    device: str = "cuda",
    show: bool = False,
    forget: bool = False,
) -> int:
    """Search your GPU for faster ways to launch the kernels, and keep what is found for it.

    Takes minutes for an op. What is found is stored at once and serves every later process on a GPU of this name;
    another version of Triton or of the tables passes it over.

    Args:
        ops: which ones, e.g. causal_attention,short_conv; all if empty.
        dtypes: of the inputs: float32, float16, bfloat16.
        head_dims: widths of keys and values, e.g. 64,128,256.
        device: cuda is the current GPU; or cuda:1.
        show: instead, print what is stored for every GPU.
        forget: instead, remove what is stored for this GPU.
    """
    from subquad.benchmarks import tune as tuning
    from subquad.kernels import OPS

    if show and forget:
        raise UsageError("tune: --show and --forget are two things; ask for one")
    try:
        if show:
            return tuning.show_tuned()
        if forget:
            return tuning.forget(device)
        return tuning.run_tune(_names(ops) or OPS, _names(dtypes), _numbers("head-dims", head_dims), device)
    except (ValueError, tuning.LostGPUError) as error:
        raise UsageError(error) from None
    except KeyboardInterrupt:
        print("subquad: interrupted; what was found before is stored", file=sys.stderr)
        return INTERRUPTED


def swap(
    model: str,
    /,
    mixer: str,
    out: Path,
    layers: str = "",
    options: str = "",
    context: int = 4096,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    gguf_file: str | None = None,
) -> int:
    """Replace attention in a transformers model by a mixer, keeping its weights; save it and print what was kept.

    Load the result with AutoModelForCausalLM.from_pretrained after `import subquad.hf`.

    Args:
        model: folder of a model, or its name on the Hub.
        mixer: which one, e.g. sliding_window. `subquad list` names them.
        out: folder to write to; it must not exist, or be empty.
        layers: which ones, e.g. 0,3,5 or a slice such as ::2 or 10:; all if empty.
        options: of the mixer, e.g. window=256 or feature_map=hedgehog.
        context: number of tokens at which bytes of state are counted.
        dtype: of the weights; auto is that of the checkpoint.
        gguf_file: the file in the folder, for a model in GGUF.
    """
    _need_transformers("swap")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"swap: --out {out} exists already; name a new folder")
    chosen = _layers(layers)
    import subquad
    from subquad.hf._load import load_model

    try:
        loaded, tokenizer = load_model(model, gguf_file, dtype)
        print(subquad.swap(loaded, mixer, layers=chosen, context=context, **_sizes("options", options)))
    except (ValueError, OSError) as error:
        raise UsageError(error) from None
    loaded.save_pretrained(out)
    tokenizer.save_pretrained(out)
    print(f"wrote {out}")
    return 0


def linearize(
    model: str,
    /,
    out: Path,
    mixer: str = "hedgehog_window",
    layers: str = "",
    cheapest: int | None = None,
    options: str = "",
    tokens: int = 200_000,
    lr: float = 1e-2,
    lora_tokens: int = 0,
    lora_lr: float = 1e-4,
    text: Path | None = None,
    gguf_file: str | None = None,
    resume: bool = False,
) -> int:
    """Replace attention in a transformers model by a linear mixer and repair it by a short distillation; save it.

    Load the result with AutoModelForCausalLM.from_pretrained after `import subquad.hf`.

    Args:
        model: folder of a model, or its name on the Hub.
        out: folder to write to, also checkpoints while it runs; it must not exist, or be empty.
        mixer: one with something to learn, e.g. hedgehog_window. `subquad list` names them.
        layers: which ones, e.g. 0,3,5 or a slice such as ::2 or 10:; all if empty.
        cheapest: instead of layers: so many, those whose swap for a window with sinks alone costs least.
        options: of the mixer, e.g. window=64.
        tokens: of stage 1, which trains what is new to give what softmax gave.
        lr: of stage 1.
        lora_tokens: of stage 2, which trains low-rank adapters on q, k, v and o; 0 leaves it out.
        lora_lr: of stage 2.
        text: a file or a folder; the source of Python's standard library if not given.
        gguf_file: the file in the folder, for a model in GGUF.
        resume: go on from the checkpoint in `out`.
    """
    _need_transformers("linearize")
    chosen = _layers(layers)
    if chosen is not None and cheapest is not None:
        raise UsageError("linearize: --layers and --cheapest exclude each other")
    import subquad.linearizing
    from subquad.hf._load import load_model

    try:
        how = subquad.linearizing.Distillation(tokens=tokens, lr=lr, lora_tokens=lora_tokens, lora_lr=lora_lr)
        loaded, tokenizer = load_model(model, gguf_file)
        if cheapest is not None:
            costs = subquad.linearizing.layer_costs(loaded, tokenizer, text=text)
            chosen = sorted(sorted(costs, key=costs.get)[:cheapest])
            print(f"layers {', '.join(map(str, chosen))}")
        said = subquad.linearizing.linearize(
            loaded, tokenizer, mixer, layers=chosen, text=text, how=how, out=out, resume=resume,
            **_sizes("options", options),
        )  # fmt: skip
    except (ValueError, OSError) as error:
        raise UsageError(error) from None
    except KeyboardInterrupt:
        print(f"subquad: interrupted; go on with the same options and --resume --out {out}", file=sys.stderr)
        return INTERRUPTED
    print(said)
    print(f"wrote {out}")
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


def _need_extras() -> None:
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the command line needs {', '.join(missing)}; install with: pip install 'subquad[bench]'")


def _need_transformers(command: str) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise UsageError(f"{command} needs transformers; install with: pip install 'subquad[hf]'")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(option: str, text: str, kind: type = int) -> tuple:
    try:
        return tuple(kind(name) for name in _names(text))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"--{option}: expected {what} separated by commas, got {text!r}") from None


def _layers(text: str) -> slice | tuple[int, ...] | None:
    if ":" not in text:
        return _numbers("layers", text) or None
    try:
        return slice(*(int(part) if part.strip() else None for part in text.split(":")))
    except (ValueError, TypeError):
        raise UsageError(f"--layers: expected numbers separated by commas, or a slice, got {text!r}") from None


def _sizes(option: str, text: str) -> dict[str, int | float | str | bool | None]:
    """Values as Python writes them; what it cannot read is a word."""
    sizes = {}
    for part in _names(text):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise UsageError(f"--{option}: expected name=value separated by commas, got {part!r}")
        try:
            sizes[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            sizes[name.strip()] = value.strip()
    return sizes


def _finish(folder: Path, written: list[Path], print_table) -> None:
    print_table(folder)
    for path in (folder / "records.jsonl", *written):
        print(f"wrote {path}")
