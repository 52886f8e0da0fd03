"""The trainer: what the seed decides, where it stops, and that a stop in between leaves no trace."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from subquad.benchmarks import training
from subquad.benchmarks.model import TinyLM
from subquad.benchmarks.tasks import MQAR, NO_ANSWER, TASKS
from subquad.benchmarks.training import Schedule, Segment, evaluate, seeded_model, stream, train, update
from subquad.mixers import MIXERS, build_layers

TINY = MQAR(num_pairs=1, seq_len=8, vocab_size=8, random_non_queries=False)
SHORT = replace(TINY, seq_len=4)
SEGMENTS = (Segment(task=TINY, batch_size=8), Segment(task=SHORT, batch_size=4, share=0.5))
SCHEDULE = Schedule(steps=12, warmup_steps=2, evaluate_every=4, num_validation=16, num_test=32)


def make_model(seed: int = 0) -> TinyLM:
    return seeded_model(lambda: TinyLM(build_layers("base_conv,attention", 16, 2), 16, vocab_size=8), seed)


def run(model: TinyLM, schedule: Schedule = SCHEDULE, **options) -> training.Run:
    settings = {"lr": 1e-2, "seed": 0} | options
    return train(model, SEGMENTS, (TINY, SHORT), schedule, **settings)


def parameters(model: TinyLM) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters())


def results(found: training.Run) -> dict:
    """All but the time it took."""
    return {name: value for name, value in asdict(found).items() if name != "seconds"}


class Interrupted(Exception):
    pass


def interrupt_at(last: int):
    def on_step(step, accuracy):
        if step == last:
            raise Interrupted

    return on_step


def test_it_learns_and_stops_at_the_target():
    schedule = Schedule(
        steps=400, warmup_steps=10, evaluate_every=20, num_validation=64, num_test=64, target_accuracy=0.99
    )
    found = run(make_model(), schedule)
    assert found.steps < 400 and found.accuracy > 0.95 and len(found.accuracies) == 2
    assert found.curve[-1].accuracy >= 0.99 > found.curve[-2].accuracy
    assert found.curve[-1].loss < found.curve[0].loss
    assert [point.step for point in found.curve] == list(range(20, found.steps + 1, 20))


def test_seed_decides_everything_and_the_global_rng_nothing():
    before = torch.get_rng_state()
    models = [make_model(), make_model(), make_model()]
    runs = [run(models[0]), run(models[1]), run(models[2], seed=1)]
    assert torch.equal(parameters(models[0]), parameters(models[1])) and results(runs[0]) == results(runs[1])
    assert not torch.equal(parameters(models[0]), parameters(models[2]))
    assert not torch.equal(parameters(make_model(0)), parameters(make_model(1)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("stops", [(1,), (6,), (3, 9), (11, 12)], ids=str)
def test_a_run_that_was_interrupted_ends_in_the_same_bits(stops, tmp_path):
    unbroken, model, checkpoint = make_model(), make_model(), tmp_path / "run.pt"
    expected = run(unbroken)
    for stop in stops:
        with pytest.raises(Interrupted):
            run(model, checkpoint=checkpoint, on_step=interrupt_at(stop))
        model = make_model(seed=7 if checkpoint.exists() else 0)  # what it holds does not matter once one is written
    steps = []
    found = run(model, checkpoint=checkpoint, on_step=lambda step, accuracy: steps.append(step))
    assert torch.equal(parameters(model), parameters(unbroken)) and results(found) == results(expected)
    resumed_at = {(1,): 0, (6,): 4, (3, 9): 8, (11, 12): 12}[stops]
    assert steps == list(range(resumed_at + 1, 13))


def test_an_interrupted_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        run(make_model(), checkpoint=path, on_step=interrupt_at(5))
    before = path.read_bytes()

    def save_half(content, file):
        file.write(b"half")
        raise Interrupted

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(Interrupted):
        run(make_model(), checkpoint=path)
    assert path.read_bytes() == before


def test_divergence_is_a_result_and_no_crash():
    found = run(make_model(), lr=float("inf"))
    assert found.diverged and found.steps == 4
    assert found.curve[-1].loss is None and 0 <= found.accuracy <= 1


def test_bfloat16_changes_the_run_and_keeps_float32_parameters():
    model, other = make_model(), make_model()
    assert results(run(model, dtype=torch.bfloat16)) != results(run(other))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_clipping_bounds_the_gradient():
    model = make_model()
    batch = TINY.sample(8, stream(0, 0))
    update(model, torch.optim.SGD(model.parameters(), lr=0.0), batch, 1e-3, torch.float32)
    norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_learning_rate_rises_then_falls_as_a_cosine():
    schedule = replace(SCHEDULE, steps=110, warmup_steps=10)
    factors = [schedule.lr_factor(step) for step in range(110)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1 and factors[60] == pytest.approx(0.5) and 0 < factors[-1] < 1e-3
    assert replace(schedule, warmup_steps=0).lr_factor(0) == 1


@pytest.mark.parametrize("name", ["steps", "evaluate_every", "num_validation", "num_test"])
def test_a_schedule_without_anything_to_do_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        replace(SCHEDULE, **{name: 0})


class Oracle(nn.Module):
    """Answers from the task's own solution, `shift` tokens beside it."""

    def __init__(self, task: MQAR, shift: int):
        super().__init__()
        self.task, self.shift = task, shift
        self.embedding = nn.Embedding.from_pretrained(torch.eye(task.vocab_size))

    def forward(self, tokens, at):
        answers = self.task.solve(tokens).flatten()[at]
        return self.embedding((answers + self.shift) % self.task.vocab_size)


@pytest.mark.parametrize("shift, accuracy", [(0, 1.0), (1, 0.0)])
def test_accuracy_is_the_share_of_right_answers(shift, accuracy):
    task = MQAR(num_pairs=3, seq_len=16, vocab_size=16)
    assert evaluate(Oracle(task, shift), (task,), 50, stream(0, 0), dtype=torch.float32) == [accuracy]


def test_a_test_is_the_same_in_batches_of_any_size(monkeypatch):
    """The number of examples counts, not how they are cut."""
    seen = []
    monkeypatch.setattr(training, "TEST_TOKENS", 3 * TINY.seq_len)
    monkeypatch.setattr(TINY.__class__, "sample", _counting(TINY.__class__.sample, seen))
    evaluate(make_model(), (TINY,), 10, stream(0, 0), dtype=torch.float32)
    assert seen == [3, 3, 3, 1]


def _counting(sample, seen):
    def counted(self, n, generator):
        seen.append(n)
        return sample(self, n, generator)

    return counted


def test_the_trainer_names_no_mixer_and_no_task():
    words = set(re.findall(r"\w+", Path(training.__file__).read_text().lower()))
    assert not words & {*MIXERS, *TASKS}


def test_a_dataset_is_drawn_once_and_batches_come_from_it():
    task = MQAR(num_pairs=1, seq_len=8, vocab_size=512)
    (_, source), (_, same), (_, other) = (
        training._sources([Segment(task=task, batch_size=16, num_examples=5)], seed)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(source.inputs, same.inputs) and not torch.equal(source.inputs, other.inputs)
    rows = {tuple(row) for row in source.inputs.tolist()}
    generator = stream(0, training.TRAINING_STREAM)
    batches = [source(generator) for _ in range(20)]
    assert {tuple(row) for batch in batches for row in batch.inputs.tolist()} == rows and len(rows) == 5
    assert all(torch.equal(task.solve(batch.inputs), batch.targets) for batch in batches)
    assert all(len(batch.positions) == 16 for batch in batches)
    with pytest.raises(ValueError, match="num_examples must be at least 1, or None, got 0"):
        Segment(task=task, batch_size=1, num_examples=0)


def test_few_examples_are_learned_by_heart():
    """Fresh test examples are then not answered: the model saw six rows again and again."""
    task = MQAR(num_pairs=2, seq_len=12, vocab_size=64)
    schedule = replace(SCHEDULE, steps=300, evaluate_every=100)
    model = seeded_model(lambda: TinyLM(build_layers("base_conv,attention", 16, 2), 16, vocab_size=64), 0)
    found = train(model, (Segment(task=task, batch_size=8, num_examples=6),), (task,), schedule, lr=1e-2, seed=0)
    assert found.curve[-1].loss < 0.1 and found.accuracy < 0.5


@pytest.mark.parametrize("num_examples", [None, 3])
def test_training_on_every_token_is_on_the_next_one_wherever_no_answer_is_due(num_examples):
    task = TASKS["noisy_recall"](num_pairs=5)
    ((_, source),) = training._sources([Segment(task=task, batch_size=4, num_examples=num_examples)], 0)
    batch = source(stream(0, training.TRAINING_STREAM))
    answers = task.solve(batch.inputs)
    following = torch.cat((batch.inputs[:, 1:], torch.full((4, 1), NO_ANSWER)), dim=1)
    assert torch.equal(batch.targets, answers.where(answers != NO_ANSWER, following))
    assert torch.equal(answers[:, :-1][answers[:, :-1] != NO_ANSWER], following[:, :-1][answers[:, :-1] != NO_ANSWER])
    assert len(batch.positions) == batch.targets.numel()


def test_giving_up_is_asked_for_and_spares_what_is_above_chance():
    task = MQAR(num_pairs=2, seq_len=8, vocab_size=16)  # chance is one half
    segments = (Segment(task=task, batch_size=4),)

    def given_up(lr, **changes):
        schedule = replace(SCHEDULE, steps=60, evaluate_every=10, num_validation=64, **changes)
        found = train(seeded_model(lambda: TinyLM(build_layers("base_conv", 8, 1), 8, 16), 0), segments, (task,),
                      schedule, lr=lr, seed=0)  # fmt: skip
        return found.given_up, found.steps

    assert given_up(1e-6) == (False, 60)
    assert given_up(1e-6, give_up_after=0.5) == (True, 30)
    easy = Segment(task=SHORT, batch_size=16)
    schedule = replace(SCHEDULE, steps=200, evaluate_every=20, give_up_after=0.5)
    found = train(make_model(), (easy,), (SHORT,), schedule, lr=1e-2, seed=0)
    assert not found.given_up and found.accuracy > 0.9
    with pytest.raises(ValueError, match="give_up_after must be in \\(0, 1\\), or None, got 1"):
        replace(SCHEDULE, give_up_after=1)
