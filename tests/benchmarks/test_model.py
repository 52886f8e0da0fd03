"""TinyLM: one path for training, prefill and decoding; and the head that never holds all logits."""

import pytest
import torch
import torch.nn.functional as F

from subquad.benchmarks import _cross_entropy
from subquad.benchmarks._cross_entropy import linear_argmax, linear_cross_entropy
from subquad.benchmarks.model import TinyLM
from subquad.mixers import MIXERS, MixerSpec, build_layers, known_options, state_bytes

SHORT = MixerSpec("base_conv", {"conv_width": 3})


def make_model(mixer: str = "attention", d_model: int = 16, **options) -> TinyLM:
    lengths = {"max_length": 16} if mixer == "hyena" else {}
    layers = build_layers((SHORT, MixerSpec(mixer, lengths)), d_model, 2)
    return TinyLM(layers, d_model, vocab_size=11, **options)


def make_tokens(b: int = 3, t: int = 12) -> torch.Tensor:
    return torch.randint(11, (b, t), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mixer", MIXERS)
def test_rows_asked_for_are_the_rows_of_the_whole(mixer):
    model, tokens = make_model(mixer), make_tokens()
    at = torch.tensor([35, 0, 7, 13])
    whole = model(tokens)
    torch.testing.assert_close(model(tokens, at), whole.flatten(0, 1)[at])
    parameters = list(model.parameters())
    gradients = [
        torch.autograd.grad(hidden.square().sum(), parameters, allow_unused=True)
        for hidden in (model(tokens, at), whole.flatten(0, 1)[at])
    ]
    for asked, expected in zip(*gradients, strict=True):
        assert (asked is None) == (expected is None)
        if asked is not None:
            torch.testing.assert_close(asked, expected)


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("options", [{}, {"num_positions": 16}, {"mlp": "swiglu"}], ids=str)
@torch.no_grad()
def test_prefill_and_steps_replay_the_forward_pass(mixer, options):
    model, tokens = make_model(mixer, **options), make_tokens()
    expected = model.logits(model(tokens))
    logits, state = model.prefill(tokens[:, :5])
    torch.testing.assert_close(logits, expected[:, 4])
    for t in range(5, tokens.shape[1]):
        logits, state = model.step(tokens[:, t], state)
        torch.testing.assert_close(logits, expected[:, t], rtol=1e-4, atol=1e-5)
    assert state.num_tokens == 12


@pytest.mark.parametrize("mixer", MIXERS)
@torch.no_grad()
def test_state_size_is_what_the_states_weigh(mixer):
    model = make_model(mixer)
    _, state = model.prefill(make_tokens(b=1))
    assert model.state_size(12) == sum(state_bytes(one) for one in state.mixers)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_mlp_and_positions_change_the_result(mlp):
    tokens = make_tokens()
    outputs = []
    for options in ({}, {"mlp": mlp}, {"num_positions": 12}):
        torch.manual_seed(0)
        outputs.append(make_model(**options)(tokens))
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[0], outputs[2])


def test_head_is_tied_to_the_embedding():
    model = make_model()
    assert torch.equal(model.logits(torch.eye(16)), model.embedding.weight.T)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: make_model(mlp="relu"), "mlp must be one of None, 'swiglu', 'gelu', got 'relu'"),
        (lambda: TinyLM([], 8, 8), "at least one block"),
        (lambda: make_model()(torch.tensor([[0, 11]])), "tokens must be in 0 .. 10, got tokens from 0 to 11"),
        (lambda: make_model()(torch.tensor([[-1, 3]])), "tokens must be in 0 .. 10, got tokens from -1 to 3"),
        (lambda: make_model(num_positions=4)(make_tokens()), "num_positions=4 cannot place 12 tokens"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_hyena_is_the_only_mixer_whose_default_needs_a_length():
    """`make_model` relies on it, and so do the recipes' defaults."""
    needs = [name for name in MIXERS if "max_length" in known_options(name)]
    assert needs == ["base_conv", "hyena"]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("a, v, block_rows", [(1, 3, 1), (37, 19, 5), (40, 19, 8), (7, 50, 100)])
def test_blocked_cross_entropy_equals_the_plain_one(a, v, block_rows, dtype, tolerance, monkeypatch):
    monkeypatch.setitem(_cross_entropy.BLOCK_ELEMENTS, "cpu", block_rows * v)
    hidden = torch.randn(a, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, 6, dtype=dtype, requires_grad=True)
    targets = torch.randint(v, (a,))
    ours, plain = linear_cross_entropy(hidden, weight, targets), F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=0)
    gradients = [torch.autograd.grad(3 * loss, (hidden, weight)) for loss in (ours, plain)]
    for asked, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(asked, expected, rtol=tolerance, atol=tolerance)
    best = linear_argmax(hidden, weight)
    assert torch.equal(best, (hidden @ weight.T).argmax(dim=-1))


def test_cross_entropy_under_autocast_keeps_a_float32_loss():
    hidden, weight = torch.randn(9, 6, requires_grad=True), torch.randn(5, 6, requires_grad=True)
    targets = torch.randint(5, (9,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T, targets), rtol=2e-2, atol=0)


def test_cross_entropy_stays_exact_where_the_probability_underflows():
    hidden, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])
    assert linear_cross_entropy(hidden, weight, torch.tensor([1])).item() == 400.0


def test_a_bottleneck_reads_the_last_token_alone_and_knows_the_position():
    model = TinyLM(build_layers("base_conv,sliding_window", 16, 2), 16, vocab_size=8, bottleneck=True)
    tokens = torch.randint(8, (3, 10), generator=torch.Generator().manual_seed(0))
    whole = model(tokens)
    at = torch.tensor([0, 7, 11, 29])
    assert whole.shape == (3, 10, 16)
    assert torch.allclose(model(tokens, at), whole.flatten(0, 1)[at], atol=1e-6)
    assert not torch.allclose(whole[:, 0], whole[:, 1], atol=1e-3)
    hidden = []
    model.decoder.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    model(tokens)
    assert hidden[0].shape == (3, 1, 16)
    plain = TinyLM(build_layers("base_conv,sliding_window", 16, 2), 16, vocab_size=8)
    plain.load_state_dict({n: p for n, p in model.state_dict().items() if not n.startswith("decoder")})
    assert torch.allclose(hidden[0][:, 0], plain(tokens)[:, -1], atol=1e-6)
