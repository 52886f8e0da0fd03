"""The laws of anchor functions: what is held out is never trained on."""

import dataclasses

import pytest
import torch

from subquad.benchmarks.tasks import (
    Classification,
    Composition,
    FrequencyTest,
    Identity,
    MultiAnchor,
    MultiInterval,
    Recitation,
    StatisticalOutput,
    Synonym,
    TenAnchors,
    WorkingMemory,
)

N = 4096


def drawn(task, n=N):
    return task.sample(n, torch.Generator().manual_seed(0))


def anchors_of(inputs):
    """(n, 2) or so: anchors, and their positions."""
    is_anchor = inputs < 20
    count = int(is_anchor[0].sum())
    return inputs[is_anchor].view(-1, count), is_anchor.nonzero()[:, 1].view(-1, count)


def keys_beside(inputs, distance=1):
    _, at = anchors_of(inputs)
    at = (at[:, -1:] + distance) % inputs.shape[1]
    return inputs.gather(1, at).squeeze(1), at.squeeze(1)


@pytest.mark.parametrize(
    "task",
    [Identity(), Identity(distance=-3), Identity(distance=2, cyclic=True, seq_len=12), TenAnchors(), Composition()],
    ids=str,
)
def test_test_keys_share_their_positions_residue_and_training_keys_do_not(task):
    modulus, seen = task.seq_len - 1, {}
    for split in ("train", "test"):
        inputs, _, _ = drawn(dataclasses.replace(task, split=split))
        keys, at = keys_beside(inputs, getattr(task, "distance", 1))
        assert ((keys % modulus == at % modulus) == (split == "test")).all()
        assert keys.min() >= 20 and keys.max() < 100
        seen[split] = set(keys.tolist())
    assert seen["train"] == set(range(20, 100)), "every key is seen in training, at some position"


def test_cyclic_anchors_stand_everywhere():
    _, at = anchors_of(drawn(Identity(distance=2, cyclic=True))[0])
    assert set(at.flatten().tolist()) == set(range(9))
    _, at = anchors_of(drawn(Identity(distance=2))[0])
    assert set(at.flatten().tolist()) == set(range(7))


def test_functions_of_single_anchors():
    for task, expected in (
        (FrequencyTest(), {3: 0, 4: 1}),
        (TenAnchors(), dict(enumerate((-4, 3, -5, -2, 1, 4, -3, -1, 2, 5), start=1))),
    ):
        inputs, targets, _ = drawn(task)
        keys, _ = keys_beside(inputs)
        anchors, _ = anchors_of(inputs)
        found = set(zip(anchors.flatten().tolist(), (targets[:, -1] - keys).tolist(), strict=True))
        assert found == set(expected.items())


@pytest.mark.parametrize("p", [0.0, 0.2, 0.8])
def test_statistical_output_has_its_probability(p):
    inputs, targets, _ = drawn(StatisticalOutput(p=p))
    keys, _ = keys_beside(inputs)
    assert abs((targets[:, -1] == keys).float().mean().item() - p) < 0.04
    assert ((targets[:, -1] - keys) // 2 == 0).all()


def test_held_out_pairs_are_never_trained_on():
    def pairs(task):
        anchors, at = anchors_of(drawn(task)[0])
        assert (at.diff(dim=1) == 1).all()
        return set(map(tuple, anchors.tolist()))

    assert pairs(Composition(which="held_out")) == {(3, 4)}
    assert len(pairs(Composition())) == 15 and (3, 4) not in pairs(Composition())
    both = ((3, 4), (4, 3))
    assert pairs(Composition(held_out=both, which="held_out")) == set(both)
    assert pairs(Synonym(which="held_out")) == {(4, 9), (9, 4)}
    trained = pairs(Synonym())
    assert not trained & {(4, 9), (9, 4)} and {(9, 1), (2, 9), (3, 4)} <= trained


def test_composition_applies_the_nearer_anchor_first_and_both_add():
    task = Composition()
    assert task.solve(torch.tensor([[25, 36, 1, 4, 67, 44, 43, 92, 87]]))[0, -1] == 67 - 8 + 5
    behind = Composition(key_first=True)
    assert behind.solve(torch.tensor([[25, 67, 1, 4, 36, 44, 43, 92, 87]]))[0, -1] == 67 - 8 + 5


@pytest.mark.parametrize("repeats", [1, 5])
def test_repeats_weigh_the_pairs_with_3(repeats):
    anchors, _ = anchors_of(drawn(Synonym(repeats=repeats))[0])
    share = (anchors == 3).any(dim=1).float().mean().item()
    assert abs(share - 6 * repeats / (10 + 6 * repeats)) < 0.04


@pytest.mark.parametrize("intervals", [((20, 60), (60, 100)), ((20, 70), (50, 100))])
def test_intervals_are_swapped_for_the_test(intervals):
    for split, order in (("train", 1), ("test", -1)):
        inputs, targets, _ = drawn(MultiAnchor(split=split, intervals=intervals))
        anchors, _ = anchors_of(inputs)
        keys, _ = keys_beside(inputs)
        assert torch.equal(targets[:, -1] - keys, anchors.squeeze(1) - 3)
        for anchor, (low, high) in zip((3, 4), intervals[::order], strict=True):
            mine = keys[anchors.squeeze(1) == anchor]
            assert mine.min() >= low and mine.max() < high


def test_an_anchors_own_interval_is_its_test():
    for split in ("train", "test"):
        inputs, _, _ = drawn(MultiInterval(split=split))
        anchors, _ = anchors_of(inputs)
        keys, _ = keys_beside(inputs)
        own = (keys - 20) // 8 == anchors.squeeze(1) - 1
        assert (own == (split == "test")).all()


@pytest.mark.parametrize("num_anchors", [1, 2, 3])
def test_recitation_goes_both_ways(num_anchors):
    shares = {}
    for direction in ("forward", "backward", "both"):
        inputs, targets, _ = drawn(Recitation(direction=direction, num_anchors=num_anchors))
        anchors, at = anchors_of(inputs)
        assert (anchors == torch.arange(3, 3 + num_anchors)).all()
        before, behind = inputs.gather(1, at[:, :1] - 1), inputs.gather(1, at[:, -1:] + 1)
        forward = (inputs[:, -1:] == before) & (targets[:, -1:] == behind)
        backward = (inputs[:, -1:] == behind) & (targets[:, -1:] == before)
        assert (forward | backward).all()
        shares[direction] = forward.float().mean().item()
    assert shares["forward"] == 1.0 and shares["backward"] < 0.05 and 0.4 < shares["both"] < 0.6


def test_last_token_is_nearer_to_its_class():
    inputs, targets, _ = drawn(Classification())
    assert abs((targets[:, -1] == 1).float().mean().item() - 0.5) < 0.05
    before = inputs[:, :-1].where(inputs[:, 1:] < 20, -1000)
    distance = (before - inputs[:, -1:]).abs()
    assert torch.equal(inputs[:, 1:].gather(1, distance.argmin(dim=1, keepdim=True)).squeeze(1), targets[:, -1])


def test_working_memory_keeps_the_order():
    inputs, targets, _ = drawn(WorkingMemory(num_keys=3))
    _, at = anchors_of(inputs)
    keys = inputs.gather(1, at[:, :3] + 1)
    assert torch.equal(keys.gather(1, inputs[:, -1:] - 1), targets[:, -1:])
    assert (at[:, :3].diff(dim=1) >= 2).all()
