"""`subquad throughput`, `check`, `profile` and `tune`: ops and mixers on this machine."""

import sys
from pathlib import Path
from typing import Literal

from ._reading import INTERRUPTED, UsageError, read_names, read_numbers, read_sizes


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
            mixers=read_names(mixers),
            device=device,
            out=out,
            only=read_names(only),
            contexts=read_numbers("contexts", contexts),
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

    names = read_names(ops) or OPS
    try:
        if static:
            from subquad.benchmarks.profile.targets import GPUS
            from subquad.benchmarks.static import run_static

            asked = {"targets": read_names(targets) or tuple(GPUS), "triton": triton or None}
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
        return run_profile(name, target=target, mixer=mixer, sizes=read_sizes("sizes", sizes), dtype=dtype, out=out)
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
        return tuning.run_tune(read_names(ops) or OPS, read_names(dtypes), read_numbers("head-dims", head_dims), device)
    except (ValueError, tuning.LostGPUError) as error:
        raise UsageError(error) from None
    except KeyboardInterrupt:
        print("subquad: interrupted; what was found before is stored", file=sys.stderr)
        return INTERRUPTED
