"""Load a model of a folder or of the Hub with weights that can be trained and saved."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    name: str | Path, gguf_file: str | None = None, dtype: torch.dtype | str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in evaluation mode, and its tokenizer; weights in GGUF are unpacked."""
    if gguf_file is None:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        return model, AutoTokenizer.from_pretrained(name)
    dtype = torch.float32 if dtype == "auto" else dtype
    dense = GgufConfig(gguf_file=gguf_file, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(name, gguf_file=gguf_file, dtype=dtype, quantization_config=dense)
    return model, AutoTokenizer.from_pretrained(name, gguf_file=gguf_file)
