"""The laws of the recall tasks beside MQAR, and of MAD's."""

import math

import pytest
import torch

from subquad.benchmarks.tasks import (
    NO_ANSWER,
    CompositionalMQAR,
    Copying,
    ForgettingMQAR,
    FuzzyRecall,
    InContextRecall,
    Induction,
    Memorization,
    NeedleInNoise,
    NoisyRecall,
    Phonebook,
    SelectiveCopying,
    SetDisjointness,
)

N = 512


def drawn(task, n=N, seed=0):
    return task.sample(n, torch.Generator().manual_seed(seed))


def close(share, expected, n):
    return abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / n)


@pytest.mark.parametrize("updates", [0, 1, 4])
def test_updated_keys_are_asked_for_their_last_value(updates):
    task = ForgettingMQAR(num_pairs=4, num_updates=updates, seq_len=40, vocab_size=64)
    inputs, targets, _ = drawn(task)
    context = 2 * (4 + updates)
    keys, values = inputs[:, 0:context:2], inputs[:, 1:context:2]
    again = keys[:, :4].unsqueeze(2) == keys[:, None, 4:]  # (n, key, update)
    assert (again.sum(dim=(1, 2)) == updates).all() and (again.sum(dim=2) <= 1).all()
    assert (values.sort(dim=1).values.diff(dim=1) > 0).all()
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        for t in range(context, 40):
            if target[t] != NO_ANSWER:
                last = max(i for i in range(0, context, 2) if row[i] == row[t])
                assert target[t] == row[last + 1]
    if updates == 1:  # every key is as likely to be updated, wherever it stands
        for place in range(4):
            assert close(again[:, place, 0].float().mean().item(), 0.25, N)


def test_neither_token_of_a_compositional_key_tells_the_value():
    inputs, targets, _ = drawn(CompositionalMQAR(num_pairs=9, seq_len=64, vocab_size=90))
    first, second, value = (inputs[:, i:27:3] for i in range(3))
    assert first.max() < 30 <= second.min() and second.max() < 60 <= value.min()
    for tokens in (first, second):
        assert ((tokens.unsqueeze(2) == tokens.unsqueeze(1)).sum(dim=2) == 3).all()
    assert ((targets != NO_ANSWER).sum(dim=1) == 9).all()
    assert close((first[:, 0] == first[:, 1]).float().mean().item(), 2 / 8, N)  # the grid's order is random


@pytest.mark.parametrize("first_len, second_len", [(4, 16), (16, 4), (8, 8)])
def test_two_lists_share_one_token(first_len, second_len):
    task = SetDisjointness(first_len=first_len, second_len=second_len, vocab_size=64)
    inputs, _, _ = drawn(task)
    first, second = inputs[:, 1 : first_len + 1], inputs[:, first_len + 2 : -1]
    same = first.unsqueeze(2) == second.unsqueeze(1)
    assert (same.sum(dim=(1, 2)) == 1).all()
    shared_by_second = same.any(dim=1).float().mean(dim=0)
    assert (shared_by_second - 1 / second_len).abs().max() < 5 * math.sqrt(0.25 / N)
    assert ((first >= 32).sum(dim=1) == int(first_len > second_len)).all()


def test_copy_is_read_back_and_never_ahead_of_its_answer():
    inputs, targets, _ = drawn(Copying(num_tokens=8, vocab_size=20))
    assert torch.equal(targets[:, 8:], inputs[:, :8]) and torch.equal(inputs[:, 9:], targets[:, 8:-1])


def test_tokens_to_copy_stand_anywhere():
    task = SelectiveCopying(num_tokens=3, seq_len=12)
    inputs, _, _ = drawn(task, 4096)
    share = (inputs[:, :8] != 14).float().mean(dim=0)
    assert (share - 3 / 8).abs().max() < 5 * math.sqrt(0.25 / 4096)
    assert (inputs[:, 8] == 15).all() and (inputs[:, 9:] == 14).all()


def test_special_token_comes_twice():
    inputs, _, _ = drawn(Induction(seq_len=10))
    assert ((inputs == 19).sum(dim=1) == 2).all() and (inputs[:, -1] == 19).all()
    assert (inputs[:, -2] != 19).all()


def test_phonebook_is_text_whose_examples_are_other_entries():
    task = Phonebook(num_entries=5, num_examples=2)
    inputs, targets, _ = drawn(task, 64)
    assert ((targets != NO_ANSWER).sum(dim=1) == 10).all()
    for row in inputs.tolist():
        *lines, question = "".join(map(chr, row)).split("\n")
        book, examples = lines[:5], lines[5:]
        assert len(set(book)) == 5 and len(set(examples)) == 2 and set(examples) < set(book)
        (asked,) = (line for line in book if line.startswith(question[:8]))
        assert asked not in examples and asked[:-1] == question


@pytest.mark.parametrize("keys, values, queries", [(1, 1, 1), (4, 1, 1), (1, 4, 1), (4, 2, 3)])
def test_needles_never_touch_and_questions_are_of_other_keys(keys, values, queries):
    task = NeedleInNoise(num_keys=keys, num_values=values, num_queries=queries, seq_len=64, vocab_size=128)
    inputs, targets, _ = drawn(task)
    assert ((inputs == 0).sum(dim=1) == keys).all() and ((inputs == 1).sum(dim=1) == queries).all()
    assert ((targets != NO_ANSWER).sum(dim=1) == queries * values).all()
    context = 64 - (queries * (2 + values) - 1)
    haystack = inputs[:, :context]
    assert ((haystack >= 44).sum(dim=1) == keys * (1 + values)).all()  # ids from 44 are keys and values
    asked = inputs.roll(1, dims=1) == 1
    assert (inputs[asked].view(N, queries).sort(dim=1).values.diff(dim=1) > 0).all()


def test_needles_stand_anywhere():
    inputs, _, _ = drawn(NeedleInNoise(num_keys=2, seq_len=12, vocab_size=64), 8192)
    first = (inputs == 0).float().argmax(dim=1)  # two needles of 3 in 10 positions: 6 * 5 / 2 arrangements
    shares = torch.bincount(first, minlength=5)[:5] / 8192
    expected = torch.tensor([5, 4, 3, 2, 1]) / 15
    assert (shares - expected).abs().max() < 5 * math.sqrt(0.25 / 8192)


def test_every_key_of_the_stream_keeps_its_value_and_the_last_was_seen():
    inputs, targets, _ = drawn(InContextRecall(num_pairs=10, vocab_size=16))
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        memory = {}
        for t in range(0, 18, 2):
            assert memory.setdefault(row[t], row[t + 1]) == row[t + 1]
        assert target[18] == memory[row[18]]


def test_noise_takes_its_share_and_never_all():
    inputs, targets, _ = drawn(NoisyRecall(num_pairs=50, noise_share=0.6), 256)
    noisy = inputs[:, 0::2] >= 16
    assert torch.equal(noisy[:, :-1], inputs[:, 1::2] >= 16)
    assert close(noisy[:, :-1].float().mean().item(), 0.6 * 48 / 49, 256 * 49)
    assert not noisy[:, -1].any() and (targets[:, 0::2][noisy] == NO_ANSWER).all()
    assert inputs.max() == 31
    inputs, _, _ = drawn(NoisyRecall(num_pairs=2, noise_share=0.99))
    assert (inputs < 16).all()


@pytest.mark.parametrize("full_keys", [True, False])
def test_motifs_have_distinct_tokens_and_one_value_for_each_key(full_keys):
    task = FuzzyRecall(seq_len=64, vocab_size=11, full_keys=full_keys)
    inputs, targets, _ = drawn(task, 256)
    lengths = set()
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        t = next(t for t, token in enumerate(row) if token != 10)
        assert t <= (7 if full_keys else 9), "another pair would have fitted"
        memory, asked = {}, False
        while t < 64:
            start = t
            while t < 64 and row[t] < 5:
                t += 1
            middle = t
            while t < 64 and row[t] >= 5:
                t += 1
            key, value = tuple(row[start:middle]), row[middle:t]
            lengths.add(len(key))
            assert len(set(key)) == len(key) <= 3 and len(set(value)) == len(value) <= 3
            if key in memory and t < 64:
                assert memory[key] == value
                assert target[middle - 1 : t - 1] == value
            asked = key in memory
            memory.setdefault(key, value)
        assert asked, "the probe was seen before"
    assert lengths == ({3} if full_keys else {1, 2, 3})


def test_memorized_map_belongs_to_the_task_and_is_one_to_one():
    task = Memorization(vocab_size=64)
    keys = torch.arange(31).repeat_interleave(2).unsqueeze(0)
    values = task.solve(keys)[0, 1::2]
    assert torch.equal(values.sort().values, torch.arange(31, 62))
    assert torch.equal(values, Memorization(vocab_size=64).solve(keys)[0, 1::2])
    assert not torch.equal(values, Memorization(vocab_size=64, map_seed=1).solve(keys)[0, 1::2])
