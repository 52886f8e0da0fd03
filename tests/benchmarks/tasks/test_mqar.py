"""The published law of MQAR."""

import itertools
import math

import pytest
import torch

from subquad.benchmarks.tasks import MQAR, NO_ANSWER

MQARS = {
    "quiet": MQAR(num_pairs=4, seq_len=32, vocab_size=64, random_non_queries=False),
    "noisy": MQAR(num_pairs=4, seq_len=32, vocab_size=64),
    "all-slots-asked": MQAR(num_pairs=8, seq_len=32, vocab_size=64),
    "every-key-used": MQAR(num_pairs=7, seq_len=40, vocab_size=16),
    "one-pair": MQAR(num_pairs=1, seq_len=4, vocab_size=4),
    "even-gaps": MQAR(num_pairs=6, seq_len=64, vocab_size=101, power_a=1.0),
    "many-pairs": MQAR(num_pairs=64, seq_len=256, vocab_size=8192),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", MQARS)
def test_puts_distinct_pairs_first_and_asks_each_key_once(name):
    task = MQARS[name]
    inputs, targets, positions = task.sample(256, seeded(0))
    context, half = 2 * task.num_pairs, task.vocab_size // 2
    keys, values = inputs[:, 0:context:2], inputs[:, 1:context:2]
    for drawn, low, high in ((keys, 1, half), (values, half, task.vocab_size)):
        assert drawn.min() >= low and drawn.max() < high
        assert (drawn.sort(dim=1).values.diff(dim=1) > 0).all()
    asked = positions.view(256, task.num_pairs) % task.seq_len
    assert (asked >= context).all() and (asked % 2 == 0).all()
    assert torch.equal(inputs.gather(1, asked), keys) and torch.equal(targets.gather(1, asked), values)


@pytest.mark.parametrize("name", MQARS)
def test_filler_never_names_a_key_of_its_row(name):
    task = MQARS[name]
    inputs, targets, _ = task.sample(256, seeded(0))
    context = 2 * task.num_pairs
    after, asked = inputs[:, context:], targets[:, context:] != NO_ANSWER
    is_key = (after.unsqueeze(2) == inputs[:, None, 0:context:2]).any(dim=2)
    assert torch.equal(is_key, asked)
    filler = after[~asked]
    assert len(filler) == 0 or (filler != 0).any() == task.random_non_queries


def test_random_filler_is_uniform_over_what_is_left():
    task = MQAR(num_pairs=2, seq_len=64, vocab_size=8)
    inputs, targets, _ = task.sample(4000, seeded(0))
    keys_1_2 = inputs[:, [0, 2]].sort(dim=1).values.eq(torch.tensor([1, 2])).all(dim=1)
    filler = inputs[:, 4:][keys_1_2][targets[:, 4:][keys_1_2] == NO_ANSWER]
    share = torch.bincount(filler, minlength=8) / len(filler)
    expected = torch.tensor([1, 0, 0, 1, 1, 1, 1, 1]) / 6
    assert (share - expected).abs().max() < 5 * math.sqrt(1 / 6 / len(filler))


@pytest.mark.parametrize("power_a", [0.01, 0.5, 1.0])
def test_gaps_follow_the_power_law_without_replacement(power_a):
    """Exact for two keys: P(g, h) = p_g * p_h / (1 - p_g), the law of NumPy's choice(replace=False)."""
    n, num_slots = 40_000, 6
    task = MQAR(num_pairs=2, seq_len=4 + 2 * num_slots, vocab_size=16, power_a=power_a)
    positions = task.sample(n, seeded(0)).positions
    gaps = (positions.view(n, 2) % task.seq_len - 4) // 2
    p = torch.arange(1, num_slots + 1).pow(power_a - 1)
    p = p / p.sum()
    for g, h in itertools.permutations(range(num_slots), 2):
        expected = p[g] * p[h] / (1 - p[g])
        share = (gaps == torch.tensor([g, h])).all(dim=1).float().mean()
        assert (share - expected).abs() < 5 * (expected / n).sqrt(), (g, h)


@pytest.mark.parametrize("vocab_size", [12, 64])  # drawn by sorting, and by drawing repeated ones anew
def test_keys_are_uniform_over_ordered_pairs(vocab_size):
    n = 40_000
    task = MQAR(num_pairs=2, seq_len=8, vocab_size=vocab_size)
    num_keys = vocab_size // 2 - 1
    keys = task.sample(n, seeded(0)).inputs[:, [0, 2]] - 1
    count = torch.bincount(keys[:, 0] * num_keys + keys[:, 1], minlength=num_keys**2).view(num_keys, num_keys)
    expected = n / (num_keys * (num_keys - 1))
    assert (count.diagonal() == 0).all()
    others = count[~torch.eye(num_keys, dtype=torch.bool)]
    assert (others - expected).abs().max() < 5 * math.sqrt(expected)


def test_passes_read_the_same_pairs_again():
    task = MQAR(num_pairs=3, num_passes=3, seq_len=32, vocab_size=64)
    inputs, targets, _ = task.sample(64, seeded(0))
    assert torch.equal(inputs[:, :6], inputs[:, 6:12]) and torch.equal(inputs[:, :6], inputs[:, 12:18])
    assert (targets[:, :18] == NO_ANSWER).all()
