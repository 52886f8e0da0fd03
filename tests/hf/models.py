"""Tiny models of several architectures, random but for the seed."""

import copy

import pytest
import torch

pytest.importorskip("transformers")
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

import subquad.hf  # noqa: F401, makes attn_implementation="subquad" known

VOCAB = 64
TOKENS = dict(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SIZES = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=3, max_position_embeddings=128)
GROUPED = dict(num_attention_heads=6, num_key_value_heads=2)

CONFIGS = {
    "llama": LlamaConfig(**TOKENS, **SIZES, **GROUPED),
    "qwen2": Qwen2Config(**TOKENS, **SIZES, **GROUPED),
    "qwen3": Qwen3Config(**TOKENS, **SIZES, **GROUPED, head_dim=16),
    "mistral": MistralConfig(**TOKENS, **SIZES, **GROUPED, sliding_window=5),
    "gemma2": Gemma2Config(
        **TOKENS,
        **SIZES,
        **GROUPED,
        head_dim=16,
        sliding_window=5,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=2.0,
    ),
    "gpt_oss": GptOssConfig(
        **TOKENS, **SIZES, **GROUPED, head_dim=8, sliding_window=5, num_local_experts=2, num_experts_per_tok=1
    ),
    "phi": PhiConfig(**TOKENS, **SIZES, **GROUPED),
    "phi3": Phi3Config(**TOKENS, **SIZES, **GROUPED),
    "gpt2": GPT2Config(**TOKENS, n_embd=48, n_layer=3, n_head=6, n_positions=128, attn_pdrop=0.0, resid_pdrop=0.0),
    "gpt_neox": GPTNeoXConfig(**TOKENS, **SIZES, num_attention_heads=6),
}

every_model = pytest.mark.parametrize("name", CONFIGS)


def build(name: str, dtype: torch.dtype = torch.float32, **changes) -> PreTrainedModel:
    """Under eager attention, with weights large enough that attention matters to the logits."""
    config = copy.deepcopy(CONFIGS[name])
    for option, value in changes.items():
        setattr(config, option, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if name == "gpt_oss":
        model.set_experts_implementation("eager")  # the default knows no float64
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.to(dtype).eval()


def prompts(b: int = 3, t: int = 12) -> torch.Tensor:
    return torch.randint(3, VOCAB, (b, t), generator=torch.Generator().manual_seed(1))


def pad_left(tokens: torch.Tensor, lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Rows cut to their lengths, padded on the left."""
    places = torch.arange(tokens.shape[1])
    real = places >= tokens.shape[1] - torch.tensor(lengths)[:, None]
    return dict(input_ids=torch.where(real, tokens, 0), attention_mask=real.long())
