"""Swapped models: what is kept is kept, and generation, padding, packing, saving and swapping back work."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, BloomForCausalLM, DynamicCache

import subquad
from subquad.hf import FAMILIES
from subquad.hf._cache import MixerLayer
from subquad.mixers import MIXERS, create

from .models import CONFIGS, SIZES, TOKENS, build, every_model, pad_left, prompts

LENGTHS = (7, 12, 3)  # not in the order of their starts
WINDOW = dict(window=4)
OPTIONS = {"hyena": dict(max_length=64, hidden_dim=8), "based": dict(feature_dim=4)}
OPTIONS |= dict.fromkeys(("sliding_window", "sink_window", "hedgehog_window"), WINDOW)
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


def swapped(mixer="gla", name="llama", layers=(0, 2), dtype=torch.float64, **options):
    model = build(name, dtype)
    torch.manual_seed(3)
    subquad.swap(model, mixer, layers=layers, context=64, **(OPTIONS.get(mixer, {}) | options))
    return model


def logits(model, mask=None, **inputs):
    with torch.no_grad():
        return model(**inputs, attention_mask=mask).logits


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "gpt_oss"])  # a mixer has no sinks
@pytest.mark.parametrize("mixer", ["attention", "sliding_window", "sink_window", "hedgehog_window"])
def test_softmax_in_the_place_of_softmax_changes_nothing(name, mixer):
    """All weights are kept, biases, norms, scales and rotary positions too; only a cap and sinks are lost."""
    changes = {"mistral": dict(sliding_window=99), "gemma2": dict(sliding_window=99, attn_logit_softcapping=None)}
    model, tokens = build(name, torch.float64, **changes.get(name, {})), prompts()
    model.set_attn_implementation("subquad")
    expected = logits(model, input_ids=tokens)
    report = subquad.swap(model, mixer, **({} if mixer == "attention" else {"window": 12}))
    torch.testing.assert_close(logits(model, input_ids=tokens), expected, rtol=1e-9, atol=1e-9)
    assert (report.new_parameters == 0) == (mixer != "hedgehog_window")
    assert all(layer.kept == ("q", "k", "v", "o") for layer in report.layers)
    if name == "llama":
        assert report.bytes_before == 3 * 2 * 4096 * 2 * 8 * 8
    subquad.unswap(model)
    torch.testing.assert_close(logits(model, input_ids=tokens), expected, rtol=0, atol=0)


def test_a_window_is_seen():
    model, tokens = build("llama", torch.float64), prompts()
    model.set_attn_implementation("sdpa")
    expected = logits(model, input_ids=tokens)
    subquad.swap(model, "sliding_window", window=4)
    found = logits(model, input_ids=tokens)
    torch.testing.assert_close(found[:, :4], expected[:, :4], rtol=1e-9, atol=1e-9)
    assert (found[:, 4:] - expected[:, 4:]).abs().amax(-1).min() > 1e-3


def test_a_mixer_is_what_it_would_be_with_the_models_own_projections():
    """Its queries and keys are not rotated: it tells positions by its decay."""
    model, x = swapped("gla", layers=[1]), torch.randn(2, 9, 48, dtype=torch.float64)
    attention = model.model.layers[1].self_attn
    mixer = create("gla", 48, num_heads=6, expand_k=1.0, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in attention.stand_in.mixer.named_parameters():
            mixer.get_parameter(name).copy_(parameter)
        q, k, v = (getattr(attention, f"{part}_proj").weight for part in "qkv")
        k, v = (w.view(2, 8, 48).repeat_interleave(3, dim=0).flatten(0, 1) for w in (k, v))
        mixer.qkv_proj.weight.copy_(torch.cat([q, k, v]))
        mixer.out_proj.weight.copy_(attention.o_proj.weight)
        positions = model.model.rotary_emb(x, torch.arange(9)[None])
        y, _ = attention(x, position_embeddings=positions, attention_mask=None)
    torch.testing.assert_close(y, mixer(x))


@every_mixer
def test_every_mixer_stands_in_and_decodes_what_it_reads(mixer):
    """Prefill, chunks and steps through the cache give what one pass without a cache gives."""
    model, tokens = swapped(mixer), prompts(t=14)
    whole = logits(model, input_ids=tokens, use_cache=False)
    if mixer != "attention":
        assert (whole - logits(build("llama", torch.float64), input_ids=tokens)).abs().max() > 1e-3
    cache, parts = DynamicCache(config=model.config), []
    with torch.no_grad():
        for part in tokens.split([5, 4, 1, 1, 3], dim=1):
            parts.append(model(part, cache=cache).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-6, atol=1e-6)
    assert [isinstance(layer, MixerLayer) for layer in cache.layers] == [True, False, True]
    assert cache.get_seq_length() == 14


@every_model
@pytest.mark.parametrize("mixer", ["linear_attention", "gated_delta_net"])
def test_every_architecture_takes_a_mixer(name, mixer):
    model, tokens = swapped(mixer, name), prompts()
    whole = logits(model, input_ids=tokens, use_cache=False)
    text = model.generate(tokens, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    greedy = tokens
    for _ in range(8):
        scores = logits(model, input_ids=greedy, use_cache=False)[:, -1:]
        scores[..., model.config.eos_token_id] = -torch.inf
        greedy = torch.cat([greedy, scores.argmax(-1)], dim=1)
    assert torch.equal(text, greedy)
    changed = tokens.clone()
    changed[:, 8:] = 5
    torch.testing.assert_close(logits(model, input_ids=changed)[:, :8], whole[:, :8], rtol=1e-6, atol=1e-6)


@every_mixer
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "subquad"])
def test_a_left_padded_row_equals_the_row_alone(mixer, implementation):
    """Whatever implementation makes the mask of the layers between."""
    model = swapped(mixer, dtype=torch.float32)
    model.set_attn_implementation(implementation)
    inputs = pad_left(prompts(), LENGTHS)
    tokens, mask = inputs.values()
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found = logits(model, mask, input_ids=tokens, position_ids=positions)[mask.bool()]
    alone = torch.cat([logits(model, input_ids=row[None, -n:])[0] for row, n in zip(tokens, LENGTHS, strict=True)])
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


@every_mixer
@pytest.mark.parametrize(
    "mode", [dict(), dict(num_beams=3), dict(prefill_chunk_size=5)], ids=["greedy", "beam", "chunks"]
)
def test_a_left_padded_batch_writes_what_each_row_writes_alone(mixer, mode):
    model, inputs = swapped(mixer, dtype=torch.float32), pad_left(prompts(), LENGTHS)
    how = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False, **mode)
    together = model.generate(**inputs, **how)[:, 12:]
    for row, n, text in zip(inputs["input_ids"], LENGTHS, together, strict=True):
        alone = model.generate(row[None, -n:], attention_mask=torch.ones(1, n, dtype=torch.int64), **how)
        assert torch.equal(alone[0, n:], text)


CACHES = {"static": dict(cache_implementation="static"), "dynamic": dict()}


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
@pytest.mark.parametrize("layers", [None, [1]], ids=str)
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("cache", CACHES)
def test_every_cache_writes_what_none_writes(name, layers, cache, beams):
    model, inputs = swapped("mamba2", name, layers, torch.float32), pad_left(prompts(), LENGTHS)
    how = dict(max_new_tokens=9, min_new_tokens=9, do_sample=False, num_beams=beams)
    expected = model.generate(**inputs, **how, use_cache=False)
    assert torch.equal(model.generate(**inputs, **how, **CACHES[cache]), expected)


def test_packed_sequences_do_not_see_each_other():
    model, tokens = swapped("gla"), prompts(b=1)
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]])
    model.set_attn_implementation("sdpa")
    by_positions = logits(model, input_ids=tokens, position_ids=positions, use_cache=False)
    alone = torch.cat([logits(model, input_ids=part) for part in tokens.split([5, 7], dim=1)], dim=1)
    torch.testing.assert_close(by_positions, alone, rtol=1e-6, atol=1e-6)
    model.set_attn_implementation("subquad")
    torch.testing.assert_close(
        logits(model, input_ids=tokens, position_ids=positions, use_cache=False), alone, rtol=1e-6, atol=1e-6
    )
    borders = torch.tensor([0, 5, 12], dtype=torch.int32)
    named = dict(cu_seq_lens_q=borders, cu_seq_lens_k=borders, max_length_q=7, max_length_k=7)
    found = logits(model, input_ids=tokens, position_ids=positions, use_cache=False, **named)
    torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="packed sequences leave no state"):
        model(tokens, position_ids=positions, use_cache=True, **named)


def test_right_padding_is_refused_where_a_state_would_hold_it():
    model, mask = swapped("gla", dtype=torch.float32), torch.ones(3, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    model.set_attn_implementation("sdpa")
    found = logits(model, mask, input_ids=prompts(), use_cache=False)
    alone = logits(model, input_ids=prompts()[1:2, :8], use_cache=False)
    torch.testing.assert_close(found[1:2, :8], alone, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="pad on the left"):
        model(prompts(), attention_mask=mask, use_cache=True)


def test_assisted_decoding_is_refused():
    model = swapped("gla", dtype=torch.float32)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(prompts(b=1), prompt_lookup_num_tokens=2, max_new_tokens=4)
    cache = DynamicCache(config=model.config)
    model(prompts(), cache=cache)
    with pytest.raises(ValueError, match="cannot be taken back"):
        cache.crop(-1)


def test_a_cache_from_before_the_swap_is_refused():
    model = build("llama")
    cache = model(prompts()).past_key_values
    subquad.swap(model, "gla")
    with pytest.raises(ValueError, match="made before the mixer was swapped in"):
        model(prompts()[:, :1], cache=cache)


def test_a_cache_can_be_emptied_repeated_and_selected_from():
    model, tokens = swapped("gla"), prompts()
    cache = DynamicCache(config=model.config)
    first = logits(model, input_ids=tokens, cache=cache)
    snapshot = copy.deepcopy(cache)
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    found = logits(model, input_ids=tokens[[2, 2, 0, 0], :1], cache=cache)
    expected = logits(model, input_ids=tokens[:, :1], cache=snapshot)
    torch.testing.assert_close(found, expected[[2, 2, 0, 0]], rtol=1e-6, atol=1e-6)
    snapshot.reset()
    if snapshot.get_seq_length() == 0:  # transformers' own layers keep their tokens, as zeros
        torch.testing.assert_close(logits(model, input_ids=tokens, cache=snapshot), first)


@every_mixer
def test_save_and_load_gives_equal_bits(mixer, tmp_path):
    model, tokens = swapped(mixer, dtype=torch.float32), prompts()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(loaded).__name__ == "SubquadLlamaForCausalLM" and loaded.config.model_type == "subquad_llama"
    assert torch.equal(logits(loaded, input_ids=tokens), logits(model, input_ids=tokens))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    subquad.unswap(loaded)
    assert torch.equal(logits(loaded, input_ids=tokens), logits(build("llama"), input_ids=tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_saved_and_loaded(family, tmp_path):
    sizes = SIZES | dict(num_attention_heads=6, num_key_value_heads=6, num_local_experts=2, num_experts_per_tok=1)
    config = AutoConfig.for_model(family, **TOKENS, **sizes, head_dim=8)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    subquad.swap(model, "gla", layers=slice(1, None))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, input_ids=prompts()), logits(model, input_ids=prompts()))
    assert list(loaded.config.subquad_layers) == [str(i) for i in range(1, config.num_hidden_layers)]


def test_bfloat16_is_saved_and_loaded(tmp_path):
    swapped("gated_delta_net", dtype=torch.float32).save_pretrained(tmp_path)
    how = dict(dtype=torch.bfloat16, attn_implementation="eager")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **how)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "again")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "again", **how)
    assert torch.equal(logits(loaded, input_ids=prompts()), logits(model, input_ids=prompts()))


def test_layers_are_chosen_by_index_slice_and_function():
    def names(layers):
        return [layer.name for layer in subquad.swap(build("llama"), "gla", layers=layers).layers]

    assert (
        names(1) == names([1]) == names(slice(1, 2)) == names(lambda index: index == 1) == ["model.layers.1.self_attn"]
    )
    assert len(names(None)) == 3
    assert names([-1]) == ["model.layers.2.self_attn"]
    for wrong in ([3], slice(5, 9), lambda index: False):
        with pytest.raises(ValueError, match=r"swap: (no attention in layers|layers=.* chooses none)"):
            names(wrong)


def test_several_mixers_in_one_model(tmp_path):
    model = swapped("gla", layers=[0])
    subquad.swap(model, "sliding_window", layers=[2], window=3)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
    assert torch.equal(logits(loaded, input_ids=prompts()), logits(model, input_ids=prompts()))
    with pytest.raises(ValueError, match=r"layers \[0\] are swapped already"):
        subquad.swap(model, "gla", layers=[0, 1])


def test_bad_requests_leave_the_model_as_it_was():
    model, tokens = build("llama", torch.float64), prompts()
    before, keys = logits(model, input_ids=tokens), list(model.state_dict())
    for request, message in (
        (dict(mixer="glaa"), "unknown mixer 'glaa'"),
        (dict(mixer="gla", window=3), "gla has no option window"),
        (dict(mixer="hyena"), "at most max_length=1024 tokens, got 4096"),
        (dict(mixer="mamba2", expand=2, num_heads=5), "num_heads must divide"),
    ):
        with pytest.raises(ValueError, match=message):
            subquad.swap(model, **request)
    assert list(model.state_dict()) == keys
    assert torch.equal(logits(model, input_ids=tokens), before)
    with pytest.raises(ValueError, match="no layer of this model is swapped"):
        subquad.unswap(model)
    with pytest.raises(ValueError, match="expected a model of transformers, got Linear"):
        subquad.swap(torch.nn.Linear(2, 2), "gla")


def test_an_unknown_layout_says_what_looks_like_attention():
    """Bloom's attention computes its softmax itself."""
    config = BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ValueError) as raised:
        subquad.swap(BloomForCausalLM(config), "gla")
    said = str(raised.value)
    assert "found no attention of transformers in BloomForCausalLM" in said
    assert "transformer.h.1.self_attention (BloomAttention)" in said and "modules=..." in said


def test_a_state_is_float32_from_the_first_token_on():
    model = swapped("gla", dtype=torch.bfloat16)
    cache = DynamicCache(config=model.config)
    for tokens in (prompts(), prompts()[:, :1]):
        model(tokens, cache=cache)
        assert cache.layers[0].state.memory.dtype == torch.float32


def test_what_is_kept_of_a_cache_does_not_change():
    model = swapped("gla")
    cache = DynamicCache(config=model.config)
    model(prompts(), cache=cache)
    kept = cache.layers[0].state
    before = kept.memory.clone()
    model(prompts()[:, :1], cache=cache)
    assert torch.equal(kept.memory, before) and not torch.equal(cache.layers[0].state.memory, before)


def test_a_mixer_that_does_not_fit_says_why():
    with pytest.raises(ValueError, match=r"takes 6 heads of 16; use a mixer of heads"):
        subquad.swap(build("qwen3"), "s4d")


def test_the_report_tells_kept_lost_and_new():
    model = build("gemma2")
    report = subquad.swap(model, "gated_delta_net", layers=[0], context=256)
    (layer,) = report.layers
    assert layer.kept == ("q", "k", "v", "o") and layer.lost == ("softcap", "window")
    new = sum(p.numel() for n, p in model.named_parameters() if ".stand_in." in n)
    assert layer.new_parameters == report.new_parameters == new > 0
    assert layer.bytes_before == 2 * 4 * 2 * 16 * 4
    assert "model.layers.0.self_attn  gated_delta_net  q k v o  softcap window" in str(report)
    assert subquad.swap(build("llama"), "based", layers=[0], feature_dim=4).layers[0].kept == ("v", "o")
    assert subquad.swap(build("llama"), "gated_delta_net", layers=[0], expand_v=2).layers[0].kept == ("q", "k", "o")


def test_a_copy_is_a_model_of_its_own():
    model, tokens = swapped("gla"), prompts()
    other = copy.deepcopy(model)
    expected = logits(model, input_ids=tokens)
    subquad.unswap(model)
    assert torch.equal(logits(other, input_ids=tokens), expected)
    subquad.unswap(other)
    assert torch.equal(logits(other, input_ids=tokens), logits(model, input_ids=tokens))


def test_only_new_parameters_need_train_and_all_get_gradients():
    model = swapped("gated_delta_net", dtype=torch.float32)
    model(prompts()).logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = swapped("gla").train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(prompts(), use_cache=False).logits.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
