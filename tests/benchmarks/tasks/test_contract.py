"""The contract every task keeps."""

import dataclasses
import math
import re

import pytest
import torch

from subquad.benchmarks import tasks
from subquad.benchmarks.tasks import MQAR, NO_ANSWER, TASKS

OTHERS = {
    "mqar, quiet": MQAR(num_pairs=4, seq_len=32, vocab_size=64, random_non_queries=False),
    "mqar, noisy": MQAR(num_pairs=4, seq_len=32, vocab_size=64),
    "mqar, two passes": MQAR(num_pairs=4, num_passes=2, seq_len=32, vocab_size=64),
    "forgetting_mqar, none": tasks.ForgettingMQAR(num_pairs=4, num_updates=0, seq_len=32, vocab_size=64),
    "forgetting_mqar, all": tasks.ForgettingMQAR(num_pairs=4, num_updates=4, seq_len=32, vocab_size=64),
    "compositional_mqar, tight": tasks.CompositionalMQAR(num_pairs=9, seq_len=54, vocab_size=30),
    "set_disjointness, long first": tasks.SetDisjointness(first_len=16, second_len=4, vocab_size=64),
    "set_disjointness, equal": tasks.SetDisjointness(first_len=2, second_len=2, vocab_size=32),
    "selective_copying, no room": tasks.SelectiveCopying(num_tokens=5, seq_len=11),
    "induction, shortest": tasks.Induction(seq_len=3),
    "phonebook, no examples": tasks.Phonebook(num_entries=3, num_examples=0),
    "needle, all of all": tasks.NeedleInNoise(num_keys=3, num_values=4, num_queries=3, seq_len=35, vocab_size=60),
    "fuzzy_recall, any key": tasks.FuzzyRecall(full_keys=False, vocab_size=12),
    "word_problem, S5": tasks.WordProblem(group="S5", seq_len=8),
    "word_problem, A4xZ5": tasks.WordProblem(group="A4xZ5", seq_len=8),
    "dyck, flat": tasks.Dyck(num_types=2, max_depth=1, seq_len=9),
    "identity, before": tasks.Identity(distance=-2),
    "identity, cyclic": tasks.Identity(distance=3, cyclic=True, seq_len=10),
    "composition, key first": tasks.Composition(key_first=True),
    "composition, held out": tasks.Composition(which="held_out"),
    "synonym, held out": tasks.Synonym(which="held_out"),
    "multi_anchor, overlapping": tasks.MultiAnchor(intervals=((20, 70), (50, 100)), split="test"),
    "recitation, three anchors": tasks.Recitation(num_anchors=3, direction="backward"),
    "statistical_output, seldom": tasks.StatisticalOutput(p=0.2),
    "working_memory, three": tasks.WorkingMemory(num_keys=3),
    "reachability, three": tasks.Reachability(num_paths=3, path_len=2),
    "set_difference, smallest": tasks.SetDifference(length=3, num_values=4),
    "match3, small": tasks.Match3(length=3, largest=4),
}
OTHERS |= {
    f"{name}, test": TASKS[name](split="test")
    for name, task in TASKS.items()
    if "split" in {field.name for field in dataclasses.fields(task)}
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[*(task() for task in TASKS.values()), *OTHERS.values()], ids=[*TASKS, *OTHERS])
def task(request):
    return request.param


def test_oracle_finds_every_answer_in_the_inputs_alone(task):
    batch = task.sample(256, seeded(0))
    found = task.solve(batch.inputs)
    assert torch.equal(found == NO_ANSWER, batch.targets == NO_ANSWER)
    assert (batch.targets != NO_ANSWER).any(dim=1).all()
    right = (found.flatten()[batch.positions] == batch.answers).float().mean().item()
    assert right == 1.0 if task.ceiling == 1 else abs(right - task.ceiling) < 5 * math.sqrt(0.25 / 256)


def test_seed_decides_everything_and_the_global_rng_nothing(task):
    before = torch.get_rng_state()
    a, b, c = task.sample(8, seeded(0)), task.sample(8, seeded(0)), task.sample(8, seeded(1))
    assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
    assert not torch.equal(a.inputs, c.inputs)
    assert torch.equal(before, torch.get_rng_state())


def test_positions_are_where_answers_are_due(task):
    batch = task.sample(16, seeded(0))
    due = (batch.targets != NO_ANSWER).flatten().nonzero().squeeze(1)
    assert torch.equal(batch.positions.sort().values, due)
    assert torch.equal(batch.answers, batch.targets.flatten()[batch.positions])


def test_tokens_are_in_the_vocabulary(task):
    inputs, targets, _ = task.sample(256, seeded(0))
    assert inputs.shape == targets.shape == (256, task.seq_len)
    assert inputs.min() >= 0 and inputs.max() < task.vocab_size
    assert targets.max() < task.vocab_size and targets[targets != NO_ANSWER].min() >= 0


def test_guessing_without_looking_stays_near_chance(task):
    """One answer for all rows and questions; its share among n may be higher by chance, also since it is the best."""
    batch = task.sample(4096, seeded(0))
    blind = batch.answers.mode().values
    share = (batch.answers == blind).float().mean().item()
    assert share <= task.chance + 6 * math.sqrt(task.chance * (1 - task.chance) / 4096)
    assert 0 < task.chance < task.ceiling


def test_every_field_is_explained(task):
    docstrings = "".join(base.__doc__ or "" for base in type(task).__mro__)
    for field in dataclasses.fields(task):
        assert re.search(rf"\b{field.name}\b", docstrings), field.name


@pytest.mark.parametrize("name", TASKS)
def test_worked_example_of_the_docstring_is_solved(name):
    made, inputs, answers = worked_example(TASKS[name])
    assert inputs.shape == (1, made.seq_len)
    assert inputs.max() < made.vocab_size
    solved = made.solve(inputs)[0].tolist()
    if isinstance(answers, str):
        assert "".join(chr(token) for token in solved if token != NO_ANSWER) == answers
    else:
        assert solved == answers


def worked_example(task):
    """The task, the inputs (1, t) and the targets, or the text of the answers, that its docstring gives."""
    call = re.search(rf"^ *({task.__name__}\(.*\))$", task.__doc__, re.MULTILINE).group(1)
    made = eval(call, {task.__name__: task})
    lines = {
        label: re.split(r" {5,}", rest.strip())[0]
        for label, rest in re.findall(r"^ *(inputs|targets|answers) (.*)$", task.__doc__, re.MULTILINE)
    }
    if lines["inputs"].startswith('"'):
        text = eval(lines["inputs"])
        return made, torch.tensor([[ord(c) for c in text]]), lines["answers"]
    targets = [NO_ANSWER if token == "." else int(token) for token in lines["targets"].split()]
    return made, torch.tensor([[int(token) for token in lines["inputs"].split()]]), targets


@pytest.mark.parametrize(
    "task, fields, message",
    [
        ("mqar", dict(num_pairs=0), "num_pairs must be at least 1; got MQAR\\(num_pairs=0"),
        ("mqar", dict(num_pairs=8, seq_len=30), "at least 2 \\* num_pairs \\* \\(num_passes \\+ 1\\) = 32"),
        ("mqar", dict(num_pairs=9, num_passes=3), "\\(num_passes \\+ 1\\) = 72"),
        ("mqar", dict(num_pairs=2, seq_len=9), "seq_len must be even"),
        ("mqar", dict(num_pairs=8, vocab_size=17), "vocab_size must be at least 2 \\* num_pairs \\+ 2 = 18"),
        ("mqar", dict(power_a=0.0), "power_a must be above 0"),
        ("forgetting_mqar", dict(num_updates=9), "num_updates must be in 0 .. num_pairs"),
        ("forgetting_mqar", dict(num_pairs=16), "at least 4 \\* num_pairs \\+ 2 \\* num_updates = 72"),
        ("compositional_mqar", dict(num_pairs=8), "num_pairs must be a square"),
        ("compositional_mqar", dict(num_pairs=16), "at least 6 \\* num_pairs = 96"),
        ("set_disjointness", dict(second_len=1500), "vocab_size must be at least"),
        ("copying", dict(num_tokens=0), "num_tokens must be at least 1"),
        ("selective_copying", dict(seq_len=32), "at least 2 \\* num_tokens \\+ 1 = 33"),
        ("phonebook", dict(num_entries=2), "num_examples must be in"),
        ("needle", dict(num_queries=5), "num_queries must be in 1 .. num_keys"),
        ("needle", dict(num_keys=30, seq_len=80), "seq_len must be at least 92"),
        ("noisy_recall", dict(noise_share=1.0), "noise_share must be in"),
        ("noisy_recall", dict(noise_ids=30), "at least 4 ids"),
        ("fuzzy_recall", dict(vocab_size=6), "so that the tokens of a motif differ"),
        ("word_problem", dict(group="D4"), "group must be one of Z2, Z60, A4xZ5, A5, S5"),
        ("flip_flop", dict(p_ignore=1.0), "p_ignore must be in"),
        ("dyck", dict(max_depth=0), "must be at least 1"),
        ("identity", dict(split="dev"), "split must be one of train, test"),
        ("identity", dict(distance=0), "distance must not be 0"),
        ("composition", dict(held_out=((3, 8),), which="held_out"), "pairs must be of the anchors"),
        ("composition", dict(which="unseen"), "which must be one of seen, held_out"),
        ("multi_anchor", dict(intervals=((20, 60), (60, 101))), "intervals must lie in 20 .. 100"),
        ("recitation", dict(num_anchors=3, seq_len=5), "seq_len must be at least 6"),
        ("working_memory", dict(num_keys=5), "seq_len must be at least 11"),
        ("index", dict(length=300), "length must be in 1 .. num_values"),
        ("majority", dict(length=7), "length must be even"),
        ("match3", dict(length=100), "nearly every sum"),
        ("set_difference", dict(num_values=50), "num_values must be above length"),
    ],
)
def test_impossible_fields_are_refused(task, fields, message):
    with pytest.raises(ValueError, match=message):
        TASKS[task](**fields)
