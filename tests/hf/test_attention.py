"""attn_implementation="subquad" is the model's own attention: logits, gradients and what `generate` says."""

import copy

import pytest
import torch

from .models import build, every_model, pad_left, prompts

LENGTHS = (12, 7, 3)
CLOSE = dict(rtol=1e-5, atol=1e-5)  # also in float64 eager attention takes its softmax in float32


def both(name, dtype=torch.float64):
    """The same weights under eager attention and under ours."""
    eager = build(name, dtype)
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("subquad")
    return eager, ours


def real_logits(model, mask=None, **inputs):
    with torch.no_grad():
        logits = model(**inputs, attention_mask=mask).logits
    return logits if mask is None else logits[mask.bool()]


@every_model
def test_logits_equal_eager(name):
    eager, ours = both(name)
    tokens = prompts()
    expected = real_logits(eager, input_ids=tokens)
    torch.testing.assert_close(real_logits(ours, input_ids=tokens), expected, **CLOSE)
    if name in ("mistral", "gemma2", "gpt_oss"):  # the test can see a window
        ours.config.sliding_window = 4
        for module in ours.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = 4
        assert (real_logits(ours, input_ids=tokens) - expected).abs().max() > 1e-3


@every_model
def test_in_float32_the_error_is_at_most_twice_that_of_eager(name):
    exact, _ = both(name)
    eager, ours = both(name, torch.float32)
    tokens = prompts()
    gold = real_logits(exact, input_ids=tokens)
    own = (real_logits(eager, input_ids=tokens).double() - gold).abs().max()
    error = (real_logits(ours, input_ids=tokens).double() - gold).abs().max()
    assert error <= 2 * own + 16 * torch.finfo(torch.float32).eps * gold.abs().max()


@every_model
def test_a_left_padded_row_equals_the_row_alone(name):
    """Eager attention, the judge, is asked without padding: with it, float64 gives it NaN where a query sees no key."""
    eager, ours = both(name)
    inputs = pad_left(prompts(), LENGTHS)
    mask = inputs.pop("attention_mask")
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found = real_logits(ours, mask, position_ids=positions, **inputs)
    alone = [
        real_logits(eager, input_ids=row[None, -n:])[0] for row, n in zip(inputs["input_ids"], LENGTHS, strict=True)
    ]
    torch.testing.assert_close(found, torch.cat(alone), **CLOSE)


@every_model
def test_right_padding_leaves_real_tokens_alone(name):
    eager, ours = both(name)
    tokens, mask = prompts(), torch.ones(3, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    found = real_logits(ours, mask, input_ids=tokens)
    torch.testing.assert_close(found, real_logits(eager, mask, input_ids=tokens), **CLOSE)


def test_padding_between_real_tokens_is_refused():
    _, ours = both("llama")
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, 5] = 0
    with pytest.raises(ValueError, match="padding after real tokens"):
        ours(prompts(), attention_mask=mask)


@every_model
def test_packed_positions_equal_each_sequence_alone(name):
    """transformers sees packing only without a cache and without a mask."""
    eager, ours = both(name)
    tokens = prompts(b=2)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1, 0, 1, 2], [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
    packed = dict(input_ids=tokens, position_ids=positions, use_cache=False)
    found = real_logits(ours, **packed)
    torch.testing.assert_close(found, real_logits(eager, **packed), **CLOSE)
    if name != "gpt_oss":  # transformers gives its masks no positions: it sees no packing there
        alone = real_logits(ours, input_ids=tokens[:1, 7:9])
        torch.testing.assert_close(found[:1, 7:9], alone, **CLOSE)


@every_model
def test_gradients_equal_eager(name):
    gradients = []
    for model in both(name):
        model(prompts()).logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    expected, found = gradients
    assert found.keys() == expected.keys()
    for n, gradient in expected.items():
        torch.testing.assert_close(found[n], gradient, rtol=1e-4, atol=1e-7 + 1e-5 * float(gradient.abs().max()))


GENERATION = {
    "greedy": dict(),
    "sampling": dict(do_sample=True, top_k=8),
    "beam": dict(num_beams=3, num_return_sequences=2),
    "static": dict(cache_implementation="static"),
    "no-cache": dict(use_cache=False),
    "chunked": dict(prefill_chunk_size=5),
}


@every_model
@pytest.mark.parametrize("mode", GENERATION)
@pytest.mark.parametrize("lengths", [(12, 12, 12), LENGTHS], ids=["even", "left-padded"])
def test_generate_equals_eager(name, mode, lengths):
    inputs, texts = pad_left(prompts(), lengths), []
    for model in both(name, torch.float32):
        torch.manual_seed(0)
        texts.append(model.generate(**inputs, max_new_tokens=14, min_new_tokens=10, **GENERATION[mode]))
    assert torch.equal(*texts)


def test_the_implementation_can_be_set_and_set_back():
    model, tokens = build("llama", torch.float64), prompts()
    expected = real_logits(model, input_ids=tokens)
    for implementation in ("subquad", "sdpa", "subquad", "eager"):
        model.set_attn_implementation(implementation)
        torch.testing.assert_close(real_logits(model, input_ids=tokens), expected, **CLOSE)


def test_it_can_be_asked_for_by_name_when_loading(tmp_path):
    eager = build("llama")
    eager.save_pretrained(tmp_path)
    ours = type(eager).from_pretrained(tmp_path, attn_implementation="subquad")
    assert ours.config._attn_implementation == "subquad"
    torch.testing.assert_close(real_logits(ours, input_ids=prompts()), real_logits(eager, input_ids=prompts()))


def test_borders_that_the_caller_names_are_kept():
    _, ours = both("llama")
    tokens = prompts(b=1)
    borders = torch.tensor([0, 5, 12], dtype=torch.int32)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    named = dict(cu_seq_lens_q=borders, cu_seq_lens_k=borders, max_length_q=7, max_length_k=7)
    found = real_logits(ours, input_ids=tokens, position_ids=positions, **named)
    torch.testing.assert_close(found[:, 5:], real_logits(ours, input_ids=tokens[:, 5:]), **CLOSE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(dropout=0.1), "dropout=0.1"),
        (dict(is_causal=False), "not causal"),
        (dict(output_attentions=True), "output_attentions"),
        (dict(position_bias=torch.zeros(1)), "position_bias"),
    ],
)
def test_what_it_cannot_do_is_refused(change, message):
    from subquad.hf._attention import attention

    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match=message):
        attention(torch.nn.Module(), q, q, q, None, **change)


def test_dropout_in_training_is_refused():
    _, ours = both("llama", torch.float32)
    ours.train()
    ours.config.attention_dropout = 0.5
    for layer in ours.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(ValueError, match="attention_dropout"):
        ours(prompts())


def test_a_mask_of_another_kind_is_refused():
    _, ours = both("llama")
    with pytest.raises(ValueError, match="makes its masks from 2-D ones"):
        ours(prompts(), attention_mask=torch.ones(3, 1, 12, 12, dtype=torch.bool).tril())
