"""Recipes of multi-query associative recall."""

from typing import Any

from subquad.mixers import MixerSpec

from ..tasks import MQAR
from ._recipe import SHORT_CONV, Candidate, Course, Part, Recipe, alike, candidate, logspace


def quick() -> Recipe:
    """Minutes on two CPU cores. Based's layout (arXiv 2402.18668): layer 0 a short convolution, layer 1 the mixer."""
    place = (SHORT_CONV, None)

    def second(mixer: str, baseline: bool = False, **options: Any) -> Candidate:
        spec = MixerSpec(mixer, options)
        return candidate((SHORT_CONV, spec), spec, (64,), baseline=baseline)

    return Recipe(
        name="quick",
        candidates=(
            second("attention", baseline=True, num_heads=1),
            second("sliding_window", num_heads=1, window=16),
            second("sliding_window", num_heads=1, window=32),
            second("based", num_heads=1, feature_dim=4),
            second("based", num_heads=1, feature_dim=8),
            second("linear_attention", num_heads=1),
            second("base_conv", conv_width=None, max_length=None),
            second("hyena", max_length=None),
        ),
        place=place,
        d_models=(64,),
        courses=(alike(_mqar((64, 4), (64, 8), (128, 16), vocab_size=256)),),
        num_examples=64 * 300,
        max_batch=64,
        batch_tokens=1 << 13,
        num_evaluations=15,
        warmup_share=0.1,
        target_accuracy=0.997,
        lrs=(5e-3, 1e-2),
        seeds=(0,),
        contexts=(128, 1024, 4096),
        throughput_seconds=1.5,
        num_validation=128,
        num_test=500,
    )


def zoology_figure2() -> Recipe:
    """Figure 2 of Arora et al. 2023 (arXiv 2312.04927), as in their code: one model for each size, width and rate.

    Different here: examples are fresh instead of 64 passes over 100,000, so there is no dropout (published 0.1); the
    blocks have no second norm.
    """
    widths = (64, 128, 256, 512)
    long_conv = MixerSpec("base_conv", {"conv_width": None, "max_length": None})

    def twice(mixer: str, **options: Any) -> tuple[tuple[MixerSpec, ...], MixerSpec]:
        spec = MixerSpec(mixer, options)
        return (spec, spec), spec

    based = MixerSpec("based", {"num_heads": 1, "feature_dim": 8})
    tasks = _mqar((64, 4), (128, 8), (256, 16), (512, 64), vocab_size=8192, random_non_queries=False)
    return Recipe(
        name="zoology-figure2",
        candidates=(
            candidate(
                *twice("attention", num_heads=1, rotary_base=None), widths, baseline=True, learned_positions=True
            ),
            candidate(*twice("hyena", max_length=None), widths),
            candidate((SHORT_CONV, long_conv), long_conv, widths),
            candidate((SHORT_CONV, based), based, widths),
        ),
        place=(None, None),
        d_models=widths,
        courses=tuple(Course.of(task) for task in tasks),
        num_examples=64 * 100_000,
        max_batch=512,
        batch_tokens=1 << 16,
        num_evaluations=64,
        lrs=logspace(-4, -2, 4),
        seeds=(123,),
        contexts=(512, 2048, 8192, 32768),
        throughput_seconds=10.0,
        num_test=3000,
    )


def based_frontier() -> Recipe:
    """Figures 2 and 3 of Arora et al. 2024 (arXiv 2402.18668): one model trained on five sizes, tested on seven.

    Two of the test sizes are longer than any in training, so the mean mixes capacity with going on past the trained
    length. Different here: examples are fresh instead of 32 passes over 180,000; a window of w sees w tokens, not
    w + 1.
    """
    long_conv_widths = (64, 128, 256)

    def second(mixer: str, widths: tuple[int, ...], baseline: bool = False, **options: Any) -> Candidate:
        spec = MixerSpec(mixer, {"num_heads": 1, **options})
        return candidate((SHORT_CONV, spec), spec, widths, baseline=baseline)

    hyena = MixerSpec("hyena", {"max_length": None})
    trained = _mqar((64, 4), (128, 8), (256, 16), (256, 32), (256, 64), vocab_size=8192)
    train = tuple(Part(task, share) for task, share in zip(trained, (5.0, 1.0, 1.0, 1.0, 1.0), strict=True))
    tests = _mqar((64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256), vocab_size=8192)
    return Recipe(
        name="based-frontier",
        candidates=(
            second("attention", (64, 128), baseline=True, rotary_base=None),
            *(second("sliding_window", (128,), window=2**n, rotary_base=None) for n in range(3, 11)),
            *(second("based", (48, 64, 128), feature_dim=f) for f in (8, 16, 24)),
            candidate((hyena, hyena), hyena, long_conv_widths),
        ),
        place=(SHORT_CONV, None),
        d_models=(64, 128),
        courses=(Course(train, tests),),
        num_examples=32 * 180_000,
        max_batch=256,
        batch_tokens=1 << 16,
        num_evaluations=32,
        target_accuracy=1.0,
        lrs=logspace(-3, -1.5, 4),
        seeds=(123,),
        contexts=(1024, 4096, 16384),
        throughput_seconds=10.0,
    )


def mqar_2026() -> Recipe:
    """Every mixer twice in a row, as many parameters each as attention has, with and without a short convolution.

    Published comparisons give some mixers a short convolution and others none, though it alone lets one layer recall,
    and few learning rates, though state spaces learn in a narrow window of them (Okpekpe & Orvieto 2025, arXiv
    2508.19029). So both are varied here for all alike. Options are the mixers' own, but for widths that are narrowed to
    the common budget of parameters, and for a single head where that makes the memory largest (retention, whose decays
    are fixed, keeps its heads). BaseConv is left out, and so are HedgehogWindow and SinkWindow, which take over from
    attention that is trained already. Lengths and steps are what a CPU does in hours: gated mixers begin to learn after
    some 1,300 steps.
    """

    def twice(mixer: str, baseline: bool = False, **options: Any) -> Candidate:
        spec = MixerSpec(mixer, options)
        return candidate((spec, spec), spec, (64,), baseline=baseline)

    def both(mixer: str, baseline: bool = False, **options: Any) -> tuple[Candidate, Candidate]:
        return tuple(twice(mixer, baseline, conv_width=width, **options) for width in (None, 4))

    tasks = _mqar((64, 4), (64, 8), (128, 16), (256, 32), vocab_size=256)
    return Recipe(
        name="mqar-2026",
        candidates=(
            *both("attention", baseline=True, num_heads=1),
            *both("sliding_window", num_heads=1, window=32),
            *both("linear_attention", num_heads=1),
            *both("based"),
            *both("rebased"),
            *both("retention"),
            *both("gla", num_heads=1),
            *both("hgrn2", num_heads=1),
            *both("mlstm", num_heads=1),
            *both("mamba2", num_heads=1, expand=1, d_state=64),
            *both("delta_net", num_heads=1),
            *both("gated_delta_net", num_heads=1, expand_v=1),
            *both("kimi_delta"),
            *(twice("rwkv7", num_heads=1, rank=8, token_shift=shift) for shift in (False, True)),
            *both("mamba", expand=1, d_state=32),
            *both("rg_lru"),
            *both("hyena", max_length=None, hidden_dim=16),
            twice("s4d"),
            twice("h3", d_state=16, shift=1),
            twice("h3", d_state=16, shift=4),
        ),
        place=(None, None),
        d_models=(64,),
        courses=(Course(tuple(map(Part, tasks, (4.0, 2.0, 1.0, 1.0))), tasks),),
        num_examples=30 * 2000,
        max_batch=32,
        batch_tokens=1 << 12,
        num_evaluations=20,
        warmup_share=0.1,
        target_accuracy=0.99,
        lrs=logspace(-3, -1.5, 4),
        seeds=(0,),
        contexts=(1024, 8192, 65536),
        throughput_seconds=1.5,
        num_validation=128,
        num_test=500,
    )


def _mqar(*sizes: tuple[int, int], vocab_size: int, random_non_queries: bool = True) -> tuple[MQAR, ...]:
    """The task at lengths and numbers of pairs."""
    return tuple(
        MQAR(seq_len=seq_len, num_pairs=pairs, vocab_size=vocab_size, random_non_queries=random_non_queries)
        for seq_len, pairs in sizes
    )
