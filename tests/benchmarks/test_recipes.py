"""The recipes say what was published, and each can be built."""

from dataclasses import FrozenInstanceError, asdict

import pytest
import torch

from subquad.benchmarks.recipes import RECIPES, based_frontier, mqar_2026, quick, zoology_figure2
from subquad.benchmarks.tasks import TASKS
from subquad.mixers import HYBRIDS, MIXERS

ALL = pytest.mark.parametrize("recipe", [make() for make in RECIPES.values()], ids=RECIPES)


@ALL
def test_every_model_of_a_recipe_can_be_built(recipe):
    tasks = [task for problem in recipe.problems() for task in problem.tests]
    for candidate in recipe.candidates:
        for d_model in candidate.d_models:
            with torch.device("meta"):
                model = candidate.build(d_model, 64, max(task.seq_len for task in tasks))
            assert len(model.blocks) == len(candidate.layers) and (model.blocks[0].mlp is not None) == bool(recipe.mlp)


@ALL
def test_a_recipe_is_named_frozen_and_has_one_baseline(recipe):
    assert RECIPES[recipe.name]() == recipe
    assert {candidate.mixer for candidate in recipe.candidates if candidate.baseline} == {"attention"}
    with pytest.raises(FrozenInstanceError):
        recipe.lrs = ()


@ALL
def test_candidates_differ_and_are_called_what_they_are(recipe):
    described = [asdict(candidate) for candidate in recipe.candidates]
    assert all(described.count(one) == 1 for one in described)
    for candidate in recipe.candidates:
        assert candidate.mixer in {layer.name for layer in candidate.layers}
        assert "max_length" not in candidate.options


@ALL
@pytest.mark.parametrize("mixer", [*MIXERS, *HYBRIDS])
def test_any_mixer_can_take_part(recipe, mixer):
    for candidate in recipe.candidates_of(mixer):
        with torch.device("meta"):
            candidate.build(candidate.d_models[0], 64, length=32)
        assert candidate.mixer == mixer


def test_models_learn_at_the_length_they_are_built_for():
    hyena = quick().candidates_of("hyena")[0].build(8, 16, length=40)
    assert hyena.blocks[1].mixer.max_length == 40
    attention = zoology_figure2().candidates[0].build(8, 16, length=40)
    assert attention.num_positions == 40


def test_figure2_is_the_published_setting():
    recipe = zoology_figure2()
    problems = recipe.problems()
    assert [(p.tests[0].seq_len, p.tests[0].num_pairs) for p in problems] == [(64, 4), (128, 8), (256, 16), (512, 64)]
    assert [p.segments[0].batch_size for p in problems] == [512, 512, 256, 128]
    assert [p.schedule.steps for p in problems] == [12_500, 12_500, 25_000, 50_000]
    assert all(not p.tests[0].random_non_queries and p.tests[0].vocab_size == 8192 for p in problems)
    assert recipe.lrs == (1e-4, 0.000464, 0.002154, 1e-2)
    assert all(candidate.d_models == (64, 128, 256, 512) for candidate in recipe.candidates)


def test_based_frontier_is_the_published_setting():
    recipe = based_frontier()
    (problem,) = recipe.problems()
    assert [(task.seq_len, task.num_pairs) for task in problem.tests] == [
        (64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)
    ]  # fmt: skip
    assert [segment.share for segment in problem.segments] == [5, 1, 1, 1, 1]
    assert {segment.batch_size for segment in problem.segments} == {256}
    assert problem.schedule.steps == 22_500 and all(task.random_non_queries for task in problem.tests)
    windows = [dict(candidate.options)["window"] for candidate in recipe.candidates_of("sliding_window")]
    assert windows == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [candidate.options["feature_dim"] for candidate in recipe.candidates_of("based")] == [8, 16, 24]


def test_2026_has_every_mixer_with_and_without_a_short_convolution_and_as_many_parameters():
    recipe = mqar_2026()
    left_out = {"base_conv", "hedgehog_window", "sink_window"}
    assert {candidate.mixer for candidate in recipe.candidates} == set(MIXERS) - left_out
    sizes = {}
    for candidate in recipe.candidates:
        with torch.device("meta"):
            model = candidate.build(64, 256, 256)
        mixer = model.blocks[0].mixer
        sizes[candidate.mixer, candidate.options.get("conv_width")] = sum(p.numel() for p in mixer.parameters())
        if candidate.mixer not in ("s4d", "h3", "rwkv7"):  # of a filter of its own, or one under another name
            assert {dict(one.options)["conv_width"] for one in recipe.candidates_of(candidate.mixer)} == {None, 4}
    budget = sizes["attention", None]
    assert all(0.85 * budget < size < 1.35 * budget for size in sizes.values()), sizes


def test_sizes_and_widths_replace_the_recipes_own():
    recipe = quick().with_sizes(((16, 2), (32, 4))).with_widths((8, 16))
    (problem,) = recipe.problems()
    assert [(task.seq_len, task.num_pairs) for task in problem.tests] == [(16, 2), (32, 4)]
    assert [segment.task for segment in problem.segments] == list(problem.tests)
    assert all(candidate.d_models == (8, 16) for candidate in recipe.candidates)
    assert recipe.candidates_of("rebased")[0].d_models == (8, 16)


def test_every_task_is_in_a_recipe():
    problems = [problem for make in RECIPES.values() for problem in make().problems()]
    assert {type(task) for problem in problems for task in problem.tests} == set(TASKS.values())


def test_mad_is_the_published_setting():
    problems = RECIPES["mad"]().problems()
    names = [type(problem.tests[0]).__name__ for problem in problems]
    assert names == ["InContextRecall", "FuzzyRecall", "NoisyRecall", "SelectiveCopying", "Compression", "Memorization"]
    assert [problem.schedule.steps for problem in problems] == [20_000] * 5 + [400]
    assert [problem.segments[0].num_examples for problem in problems] == [12_800] * 5 + [256]
    assert {problem.segments[0].batch_size for problem in problems} == {128}
    assert problems[1].tests[0].full_keys and not problems[1].segments[0].task.full_keys


def test_mads_sweep_makes_one_size_harder_at_a_time():
    problems = RECIPES["mad-sweep"]().problems()
    easiest = {type(p.tests[0]): p for p in problems[:6]}
    assert len({problem.label(problem.tests[0]) for problem in problems}) == len(problems) == 66
    for problem in problems[6:]:
        (task,), base = problem.tests, easiest[type(problem.tests[0])]
        fields = {name: value for name, value in asdict(task).items() if value != asdict(base.tests[0])[name]}
        examples = problem.segments[0].num_examples
        assert len(fields) + (examples != base.segments[0].num_examples) == 1
        assert problem.schedule.steps * 128 == 200 * examples and problem.segments[0].batch_size == 128


def test_identity_is_trained_on_more_and_more_examples():
    problems = RECIPES["anchor-identity"]().problems()
    assert [problem.segments[0].num_examples for problem in problems] == [200, 250, 300, 350, 400, 450, 500, 600, 1000]
    assert [problem.label(problem.tests[1]) for problem in problems][:2] == [
        "Identity(split=test), 200 examples", "Identity(split=test), 250 examples"
    ]  # fmt: skip
    assert {problem.schedule.steps for problem in problems} == {80_000}


def test_disjointness_is_trained_in_both_orders_and_tested_on_longer_lists():
    (problem,) = RECIPES["jrt-disjointness"]().problems()
    sizes = {(segment.task.first_len, segment.task.second_len) for segment in problem.segments}
    assert {(4, 256), (256, 4)} < sizes and len(sizes) == 12
    assert {(768, 16), (16, 768)} < {(task.first_len, task.second_len) for task in problem.tests}
