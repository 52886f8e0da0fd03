"""The laws of state tracking, of stack languages and of BAPO's problems."""

import itertools

import pytest
import torch

from subquad.benchmarks.tasks import (
    NO_ANSWER,
    Disjointness,
    Dyck,
    Equality,
    FlipFlop,
    Index,
    Majority,
    Match2,
    Match3,
    Parity,
    Reachability,
    SetDifference,
    StackManipulation,
    Unique,
    WordProblem,
)

N = 2048


def drawn(task, n=N):
    return task.sample(n, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("group, order, abelian", [("Z2", 2, True), ("Z60", 60, True), ("A4xZ5", 60, False),
                                                   ("A5", 60, False), ("S5", 120, False)])  # fmt: skip
def test_groups_are_groups(group, order, abelian):
    product = WordProblem(group=group)._product
    elements = torch.arange(order)
    assert product.shape == (order, order)
    assert torch.equal(product[0], elements) and torch.equal(product[:, 0], elements)
    assert torch.equal(product.sort(dim=1).values, elements.expand(order, -1))
    assert torch.equal(product[product], product[:, product])  # (x y) z = x (y z)
    assert torch.equal(product, product.T) == abelian


def test_a5_is_simple_and_a4_times_z5_is_not():
    def normal_closure(product, x):
        inverse = (product == 0).int().argmax(dim=1)
        found = {0, *(int(product[product[g, x], inverse[g]]) for g in range(len(product)))}
        while (more := {int(product[a, b]) for a in found for b in found}) != found:
            found = more
        return found

    assert all(len(normal_closure(WordProblem(group="A5")._product, x)) == 60 for x in (1, 7, 59))
    assert min(len(normal_closure(WordProblem(group="A4xZ5")._product, x)) for x in range(1, 60)) < 60


def test_words_of_s5_compose_permutations():
    elements = list(itertools.permutations(range(5)))
    inputs, targets, _ = drawn(WordProblem(group="S5", seq_len=6), 16)
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        state = tuple(range(5))
        for x, y in zip(row, target, strict=True):
            state = tuple(elements[x][i] for i in state)
            assert elements[y] == state


def test_parity_counts_ones():
    inputs, targets, _ = drawn(Parity(seq_len=20))
    assert torch.equal(targets, inputs.cumsum(dim=1) % 2)


def test_flip_flop_writes_first_reads_last_and_ignores_its_share():
    inputs, targets, _ = drawn(FlipFlop(num_instructions=64, p_ignore=0.7), 256)
    instruction = inputs[:, 0::2]
    assert (instruction[:, 0] == 2).all() and (instruction[:, -1] == 3).all()
    assert abs((instruction[:, 1:-1] == 4).float().mean() - 0.7) < 0.03
    assert torch.equal(targets[:, 0::2] != NO_ANSWER, instruction == 3)
    read = instruction[:, :-1] == 3  # the bit that stands behind a read is its answer
    assert torch.equal(inputs[:, 1::2][read], targets[:, 0:-1:2][read])


@pytest.mark.parametrize("depth", [1, 3])
def test_dyck_stays_within_its_depth_and_reaches_it(depth):
    inputs, targets, _ = drawn(Dyck(num_types=2, max_depth=depth, seq_len=40), 256)
    height = torch.where(inputs < 2, 1, -1).cumsum(dim=1)
    assert height.min() == 0 and height.max() == depth
    assert torch.equal(targets == NO_ANSWER, height == 0)


def test_popping_an_empty_stack_does_nothing():
    task = StackManipulation(stack_len=1, num_actions=3)
    assert task.solve(torch.tensor([[1, 4, 4, 2, 5, 5, 5, 5, 5]]))[0, 4:7].tolist() == [0, 6, NO_ANSWER]
    inputs, targets, _ = drawn(task)
    popped_below = (inputs[:, 1] == 4) & (inputs[:, 2] == 4)
    assert popped_below.any() and torch.equal(task.solve(inputs), targets)


YES_OR_NO = [
    Equality(length=8),
    Disjointness(length=8),
    Match2(length=8, largest=20),
    Match3(length=8, largest=20),
    Reachability(num_paths=3, path_len=4),
]


@pytest.mark.parametrize("task", YES_OR_NO, ids=str)
def test_yes_and_no_are_equally_likely(task):
    yes = drawn(task).answers == task.vocab_size - 1
    assert abs(yes.float().mean().item() - 0.5) < 0.06


def test_index_counts_from_0():
    inputs, targets, _ = drawn(Index(length=6, num_values=20))
    assert (inputs[:, :6].sort(dim=1).values.diff(dim=1) > 0).all()
    assert torch.equal(inputs.gather(1, inputs[:, 6:] - 20), targets[:, -1:])
    assert not torch.equal(inputs[0, :6].sort().values, inputs[1, :6].sort().values), "each row has a list of its own"


def test_unequal_lists_differ_in_two_places():
    inputs, targets, _ = drawn(Equality(length=8))
    differing = (inputs[:, :8] != inputs[:, 9:]).sum(dim=1)
    assert torch.equal(differing, torch.where(targets[:, -1] == 4, 0, 2))


def test_sets_share_one_element_or_none():
    inputs, targets, _ = drawn(Disjointness(length=8))
    shared = (inputs[:, :8] & inputs[:, 9:]).sum(dim=1)
    assert torch.equal(shared, torch.where(targets[:, -1] == 4, 0, 1))


def test_opposites_are_met_once_and_nothing_else_tells():
    inputs, targets, _ = drawn(Match2(length=8, largest=20))
    opposite = (inputs[:, :8] == 39 - inputs[:, 8:]).sum(dim=1)
    assert torch.equal(opposite, (targets[:, -1] == 41).long())
    assert (inputs.sort(dim=1).values.diff(dim=1) > 0).all()
    yes = targets[:, -1] == 41
    assert abs(inputs[yes].float().mean() - inputs[~yes].float().mean()) < 1.0


def test_last_number_of_match3_is_drawn_alike_for_yes_and_no():
    inputs, targets, _ = drawn(Match3(length=6, largest=50))
    yes = targets[:, -1] == 202
    assert abs(inputs[yes, -1].float().std() - inputs[~yes, -1].float().std()) < 5
    assert (inputs[:, :6].sort(dim=1).values.diff(dim=1) > 0).all()


def test_majority_is_by_one():
    inputs, targets, _ = drawn(Majority(length=10))
    ones = inputs.sum(dim=1)
    assert torch.equal(ones, 5 + targets[:, -1])


def test_all_but_one_number_come_again():
    inputs, targets, _ = drawn(Unique(length=21))
    counts = torch.zeros(N, 21, dtype=torch.long).scatter_add_(1, inputs, torch.ones_like(inputs))
    assert ((counts == 1).sum(dim=1) == 1).all()
    assert torch.equal((counts == 1).long().argmax(dim=1), targets[:, -1])
    assert ((counts > 0).sum(dim=1) == 6).all()


def test_second_set_lacks_one_element_or_none():
    inputs, targets, _ = drawn(SetDifference(length=12, num_values=20))
    a, b = inputs[:, :4], inputs[:, 5:]
    missing = (a.unsqueeze(2) != b.unsqueeze(1)).all(dim=2)
    none = targets[:, -1] == 21
    assert torch.equal(missing.sum(dim=1), (~none).long()) and abs(none.float().mean() - 0.5) < 0.06
    assert (b.sort(dim=1).values.diff(dim=1) > 0).all() and b.shape[1] == 8


def test_paths_are_disjoint():
    inputs, _, _ = drawn(Reachability(num_paths=3, path_len=4))
    edges = inputs[:, :-2].view(N, 9, 2)
    for end in (0, 1):
        assert (edges[:, :, end].sort(dim=1).values.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in edges[:, 0].tolist()}) > 100
