"""The contract every mixer keeps. Equality with its paper's equation is in test_<mixer>.py."""

import pytest
import torch

from subquad.mixers import MIXERS, State, create, known_options, state_bytes

from .variants import D_MODEL, ROTATED, VARIANTS, build, every_variant, tokens

LONG = dict(conv_width=None, max_length=48)

# For every option: the setting it is compared in, and another value of it.
OPTIONS = {
    "attention": {
        "num_heads": ({}, 2),
        "num_kv_heads": ({}, 2),
        "head_dim": ({}, 8),
        "rotary_base": ({}, 100.0),
        "conv_width": ({}, 3),
    },
    "sliding_window": {
        "window": ({}, 3),
        "num_heads": ({}, 2),
        "num_kv_heads": ({}, 2),
        "head_dim": ({}, 8),
        "rotary_base": ({}, 100.0),
        "conv_width": ({}, 3),
    },
    "sink_window": {
        "sinks": (dict(window=3), 2),
        "window": ({}, 3),
        "num_heads": ({}, 2),
        "num_kv_heads": ({}, 2),
        "head_dim": ({}, 8),
        "rotary_base": ({}, 100.0),
    },
    "linear_attention": {
        "num_heads": ({}, 2),
        "head_dim": ({}, 8),
        "feature_map": ({}, "relu2"),
        "normalize": ({}, None),
        "rotary_base": (ROTATED, None),
        "conv_width": ({}, 3),
    },
    "hedgehog_window": {
        "window": (dict(window=5), 3),
        "sinks": (dict(window=5), 2),
        "num_heads": ({}, 2),
        "num_kv_heads": ({}, 2),
        "head_dim": ({}, 8),
        "rotary_base": ({}, 100.0),
    },
    "based": {"num_heads": ({}, 2), "head_dim": ({}, 8), "feature_dim": ({}, 8), "conv_width": ({}, 3)},
    "rebased": {"num_heads": ({}, 2), "head_dim": ({}, 8), "feature_dim": ({}, 8), "conv_width": ({}, 3)},
    "retention": {"num_heads": ({}, 2), "head_dim": ({}, 8), "rotary_base": ({}, 100.0), "conv_width": ({}, 3)},
    "gla": {"num_heads": ({}, 2), "head_dim": ({}, 8), "expand_k": ({}, 1.0), "conv_width": ({}, 3)},
    "hgrn2": {"num_heads": ({}, 2), "head_dim": ({}, 8), "lower_bound": ({}, 0.5), "conv_width": ({}, 3)},
    "mlstm": {"num_heads": ({}, 2), "head_dim": ({}, 8), "conv_width": ({}, 3)},
    "mamba2": {"expand": ({}, 1), "num_heads": ({}, 2), "d_state": ({}, 8), "conv_width": ({}, 3)},
    "delta_net": {
        "num_heads": ({}, 2),
        "head_dim": ({}, 8),
        "expand_v": ({}, 2),
        "conv_width": ({}, 3),
        "negative_eigenvalues": ({}, True),
    },
    "gated_delta_net": {
        "num_heads": ({}, 2),
        "head_dim": ({}, 8),
        "expand_v": ({}, 1),
        "conv_width": ({}, 3),
        "negative_eigenvalues": ({}, True),
    },
    "kimi_delta": {
        "num_heads": ({}, 2),
        "head_dim": ({}, 8),
        "conv_width": ({}, 3),
        "negative_eigenvalues": ({}, True),
    },
    "rwkv7": {"num_heads": ({}, 2), "rank": ({}, 5), "token_shift": ({}, False)},
    "mamba": {"expand": ({}, 1), "d_state": ({}, 8), "dt_rank": ({}, 3), "conv_width": ({}, 3)},
    "rg_lru": {"expand": ({}, 2), "num_heads": ({}, 2), "conv_width": ({}, 3)},
    "base_conv": {"conv_width": ({}, 4), "max_length": (LONG, 64), "implicit": (LONG, True)},
    "s4d": {"d_state": ({}, 8)},
    "h3": {"d_state": ({}, 8), "shift": ({}, 2)},
    "hyena": {
        "max_length": ({}, 32),
        "conv_width": ({}, None),
        "num_bands": ({}, 3),
        "hidden_dim": ({}, 8),
        "frequency": ({}, 10.0),
    },
}
EVERYWHERE = {"backend", "device", "dtype"}


def replay(mixer, x, state=None):
    """Outputs and final state of one step per token."""
    state, ys = State() if state is None else state, []
    with torch.no_grad():
        for x_t in x.unbind(1):
            y, state = mixer.step(x_t, state)
            ys.append(y)
    return torch.stack(ys, dim=1), state


def test_every_mixer_has_a_variant():
    assert {name for name, _ in VARIANTS.values()} == set(MIXERS)


@every_variant
def test_shape_and_dtype(variant):
    x = tokens()
    y = build(variant)(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype


@every_variant
def test_the_future_does_not_reach_the_past(variant):
    mixer, x, cut = build(variant), tokens(), 7
    changed = torch.cat([x[:, :cut], tokens(t=30)[:, -6:]], dim=1)
    y, other = mixer(x), mixer(changed)
    torch.testing.assert_close(other[:, :cut], y[:, :cut], rtol=1e-12, atol=1e-12)
    assert (other[:, cut:] - y[:, cut:]).abs().amax(dim=(0, 2)).min() > 1e-6


@every_variant
def test_rows_are_independent(variant):
    mixer, x = build(variant), tokens(b=3)
    torch.testing.assert_close(mixer(x)[1:2], mixer(x[1:2]), rtol=1e-12, atol=1e-12)


@every_variant
def test_steps_replay_forward(variant):
    mixer, x = build(variant), tokens(t=21)
    y, state = replay(mixer, x)
    torch.testing.assert_close(y, mixer(x), rtol=1e-10, atol=1e-12)
    assert state.position == 21


@every_variant
@pytest.mark.parametrize("lengths", [(6, 7), (1, 12), (12, 1), (2, 9, 2)], ids=str)
def test_chunks_equal_the_whole(variant, lengths):
    mixer, x = build(variant), tokens()
    whole, last = mixer.run(x, State())
    state, ys = State(), []
    for chunk in x.split(lengths, dim=1):
        y, state = mixer.run(chunk, state)
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, dim=1), whole, rtol=1e-10, atol=1e-12)
    assert state_bytes(state) == state_bytes(last)


@every_variant
def test_gradients_flow_through_the_state(variant):
    mixer, x = build(variant), tokens()
    weights = list(mixer.parameters())
    probe = tokens(t=33)[:, -13:]
    whole = torch.autograd.grad((mixer(x) * probe).sum(), weights)
    state, loss = State(), 0.0
    for chunk, part in zip(x.split(5, dim=1), probe.split(5, dim=1), strict=True):
        y, state = mixer.run(chunk, state)
        loss = loss + (y * part).sum()
    for expected, found in zip(whole, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@every_variant
def test_a_detached_state_carries_no_gradient(variant):
    mixer, x = build(variant), tokens().requires_grad_()
    y, state = mixer.run(x, State())
    state = state.detach()
    y, _ = mixer.run(tokens(t=2), state)
    assert torch.autograd.grad(y.sum(), x, allow_unused=True) == (None,)


@every_variant
def test_a_state_is_a_value(variant):
    """Continuations of one state, in any order, do not disturb it or each other."""
    mixer, x = build(variant), tokens(t=9)
    first, second = tokens(t=20)[:, 9:14], tokens(t=30)[:, 20:24]
    with torch.no_grad():
        _, state = mixer.run(x, State())
        state = mixer.run(x[:, :1], state)[1]  # a cache with room to spare
        size = state_bytes(state)
        expected = [mixer.run(chunk, state)[0] for chunk in (first, second)]
        a = b = state
        for t in range(4):  # the two continuations take turns
            ya, a = mixer.step(first[:, t], a)
            yb, b = mixer.step(second[:, t], b)
            torch.testing.assert_close(ya, expected[0][:, t], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(yb, expected[1][:, t], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mixer.run(first, state)[0], expected[0])
    assert state_bytes(state) == size


@every_variant
def test_a_state_can_be_reordered(variant):
    mixer, x, order = build(variant), tokens(b=3), torch.tensor([2, 0, 2])
    with torch.no_grad():
        _, state = mixer.run(x[:, :8], State())
        y, _ = mixer.run(x[order, 8:], state.index_select(order))
        torch.testing.assert_close(y, mixer(x)[order, 8:], rtol=1e-10, atol=1e-12)


@every_variant
def test_rows_of_different_lengths_join(variant):
    """A batch of left-padded prompts: each row goes on as it would alone, also when rows are reordered."""
    mixer, x, begins = build(variant), tokens(b=3, t=20), (0, 9, 12)
    with torch.no_grad():
        states = [
            mixer.run(row[None, begin:13], State(position=begin))[1] for row, begin in zip(x, begins, strict=True)
        ]
        alone = [mixer.run(row[None, 13:], state)[0] for row, state in zip(x, states, strict=True)]
        y, state = mixer.run(x[:, 13:17], State.join(states))
        later, _ = replay(mixer, x[[2, 0, 1], 17:], state.index_select(torch.tensor([2, 0, 1])))
    torch.testing.assert_close(torch.cat([y, later[[1, 2, 0]]], dim=1), torch.cat(alone), rtol=1e-10, atol=1e-12)


@every_variant
def test_an_emptied_state_is_the_state_before_the_first_token(variant):
    mixer, x = build(variant), tokens(t=20)
    with torch.no_grad():
        state = mixer.run(x[:, :7], State())[1].emptied()
        y, _ = mixer.run(x[:, 7:], state)
        expected, _ = mixer.run(x[:, 7:], State(position=7))
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


def test_states_at_different_positions_do_not_join():
    with pytest.raises(ValueError, match="at one position can be joined, got"):
        State.join([State(position=2), State(position=3)])


@every_variant
@pytest.mark.parametrize("t", [1, 4, 13])
def test_state_size_is_true(variant, t):
    """What is declared for one sequence is what the tensors of a run hold, however the tokens came in."""
    mixer, x = build(variant, dtype=torch.float32), tokens(t=t, dtype=torch.float32)
    with torch.no_grad():
        _, state = mixer.run(x, State())
    parts = [part for part in (state.conv, state.memory) if part is not None]
    held = [p for part in parts for p in ([part] if isinstance(part, torch.Tensor) else part.tokens)]
    assert mixer.state_size(t) == sum(p.numel() * p.element_size() for p in held) / 2
    assert mixer.state_size(t) == state_bytes(replay(mixer, x)[1]) / 2


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_state_size_grows_as_published(backend):
    def grows(variant):
        mixer = build(variant, backend=backend)
        return mixer.state_size(16) - mixer.state_size(8)

    assert grows("attention") == 8 * 2 * D_MODEL * 8
    assert grows("hyena") == grows("base_conv-long") == 8 * D_MODEL * 8
    for bounded in set(MIXERS) - {"attention", "hyena"}:
        assert grows(bounded) == 0, bounded


@every_variant
def test_backends_agree(variant):
    x = tokens()
    expected, state = build(variant, backend="reference").run(x, State())
    y, other = build(variant, backend="torch").run(x, State())
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    assert state_bytes(other) == state_bytes(state)


@pytest.mark.parametrize("variant", MIXERS)
def test_triton_agrees_with_the_reference(variant):
    x = tokens(b=1, t=5, dtype=torch.float32)
    expected = build(variant, torch.float32, "reference")(x)
    torch.testing.assert_close(build(variant, torch.float32, "triton")(x), expected, rtol=1e-4, atol=1e-5)


@every_variant
def test_mixing_matrix_reproduces_the_output(variant):
    """For any values: y before the merge is the matrix times v. Convolutions mix each channel by its own matrix."""
    mixer, x = build(variant), tokens()
    inputs, _ = mixer.project(x, None, 0)
    y, _ = mixer.mix(inputs, None)
    matrix = mixer.mixing_matrix(x)
    assert matrix.triu(1).abs().max() < 1e-12
    if y.ndim == 3:
        v = inputs["v"] if "v" in inputs else inputs["x"]
        expected = torch.einsum("bdts, bsd -> btd", matrix, v)
        if "gate" in inputs:
            expected = expected + inputs["gate"] * (mixer.bias if mixer.is_long else mixer.conv.bias)
    else:
        v = inputs["v"].repeat_interleave(y.shape[2] // inputs["v"].shape[2], dim=2)
        expected = torch.einsum("bhts, bshv -> bthv", matrix, v)
    torch.testing.assert_close(expected, y, rtol=1e-9, atol=1e-11)


def test_mixing_matrix_of_more_tokens_than_channels():
    mixer, x = build("linear_attention"), tokens(b=1, t=150)
    inputs, _ = mixer.project(x, None, 0)
    y = torch.einsum("bhts, bshv -> bthv", mixer.mixing_matrix(x), inputs["v"])
    torch.testing.assert_close(y, mixer.mix(inputs, None)[0], rtol=1e-9, atol=1e-11)


@every_variant
def test_gradients_reach_every_parameter(variant):
    mixer = build(variant)
    with torch.no_grad():
        for parameter in mixer.parameters():
            if not parameter.any():  # a product that starts at zero holds back its other factor's gradient
                parameter.normal_()
    (mixer(tokens()) ** 2).sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


@every_variant
def test_state_dict_round_trip(variant):
    mixer, x = build(variant), tokens()
    name, options = VARIANTS[variant]
    torch.manual_seed(5)
    other = create(name, D_MODEL, **options, backend="torch", dtype=torch.float64)
    assert not torch.allclose(other(x), mixer(x))
    other.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(other(x), mixer(x), rtol=0, atol=0)


@every_variant
def test_bfloat16_autocast_trains_and_steps(variant):
    mixer, x = build(variant, torch.float32), tokens(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixer(x)
        stepped, _ = replay(mixer, x)
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in mixer.parameters())
    exact = mixer(x)
    scale = exact.abs().max()
    assert (y - exact).abs().max() < 0.1 * scale
    assert (stepped - exact).abs().max() < 0.1 * scale


@every_variant
def test_bfloat16_weights_run_and_step(variant):
    exact = build(variant, torch.float32)
    mixer, x = build(variant, torch.float32).bfloat16(), tokens(dtype=torch.bfloat16)
    y, _ = replay(mixer, x)
    assert y.dtype == mixer(x).dtype == torch.bfloat16
    assert (y - exact(x.float())).abs().max() < 0.1 * y.abs().max()


@pytest.mark.parametrize("variant", MIXERS)
def test_compiles_without_a_graph_break(variant):
    mixer, x = build(variant, torch.float32), tokens(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, mixer(x), rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(mixer(x).square().sum(), list(mixer.parameters()))
    for found, wanted in zip(torch.autograd.grad(y.square().sum(), list(mixer.parameters())), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("variant", ["sliding_window", "hyena"])
def test_a_step_compiles_without_a_graph_break(variant):
    mixer, x = build(variant, torch.float32), tokens(dtype=torch.float32)
    torch._dynamo.reset()
    step = torch.compile(mixer.step, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        _, state = mixer.run(x[:, :11], State())
        for x_t, y in zip(x[:, 11:].unbind(1), mixer(x)[:, 11:].unbind(1), strict=True):
            found, state = step(x_t, state)
            torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, option", [(name, option) for name in MIXERS for option in OPTIONS[name]])
def test_every_option_changes_the_result(name, option):
    """With the weights kept wherever they still fit and are not what the option sets."""
    setting, value = OPTIONS[name][option]
    x = tokens()
    results = []
    for options in (setting, setting | {option: value}):
        torch.manual_seed(0)
        results.append(create(name, D_MODEL, **options, backend="torch", dtype=torch.float64))
    plain, other = results
    own = other.state_dict()
    kept = {key: w for key, w in plain.state_dict().items() if key in own and own[key].shape == w.shape}
    other.load_state_dict({key: w for key, w in kept.items() if not key.endswith(option)}, strict=False)
    assert not torch.allclose(plain(x), other(x))


@pytest.mark.parametrize("name", MIXERS)
def test_no_option_is_untested(name):
    assert set(OPTIONS[name]) | EVERYWHERE == set(known_options(name))
    assert len(known_options(name)) + 1 <= 10


@pytest.mark.parametrize("name", MIXERS)
def test_backend_device_and_dtype_are_used(name):
    with pytest.raises(ValueError, match="unknown backend 'quick'"):
        create(name, D_MODEL, backend="quick")(tokens(dtype=torch.float32))
    mixer = create(name, D_MODEL, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in mixer.parameters())


@every_variant
def test_bad_inputs_are_refused(variant):
    mixer = build(variant)
    with pytest.raises(ValueError, match=r"x must be \(b, t, 16\) with at least one token, got shape \(2, 5, 8\)"):
        mixer(torch.zeros(2, 5, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least one token"):
        mixer(torch.zeros(2, 0, D_MODEL, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"step takes one token \(b, 16\), got shape \(2, 1, 16\)"):
        mixer.step(torch.zeros(2, 1, D_MODEL, dtype=torch.float64), State())
    with pytest.raises(ValueError, match="after at least one token, got t=0"):
        mixer.state_size(0)


@every_variant
def test_a_state_of_another_batch_is_refused(variant):
    mixer = build(variant)
    with torch.no_grad():
        _, state = mixer.run(tokens(b=2), State())
        with pytest.raises(ValueError, match=r"state|b=|n="):
            mixer.step(tokens(b=3)[:, 0], state)
