"""`subquad swap` and `linearize`: mixers in models of transformers."""

import sys
from pathlib import Path
from typing import Literal

from ._reading import INTERRUPTED, UsageError, need_packages, read_layers, read_sizes


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
    need_packages("swap", "hf", "transformers")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"swap: --out {out} exists already; name a new folder")
    chosen = read_layers(layers)
    import subquad
    from subquad.hf._load import load_model

    try:
        loaded, tokenizer = load_model(model, gguf_file, dtype)
        print(subquad.swap(loaded, mixer, layers=chosen, context=context, **read_sizes("options", options)))
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
    need_packages("linearize", "hf", "transformers")
    chosen = read_layers(layers)
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
            **read_sizes("options", options),
        )  # fmt: skip
    except (ValueError, OSError) as error:
        raise UsageError(error) from None
    except KeyboardInterrupt:
        print(f"subquad: interrupted; go on with the same options and --resume --out {out}", file=sys.stderr)
        return INTERRUPTED
    print(said)
    print(f"wrote {out}")
    return 0
