"""Recipes of published pictures at sizes that two CPU cores do in an hour or two."""

from dataclasses import replace
from typing import Any

from subquad.mixers import MIXERS, MixerSpec, known_options

from .. import tasks
from ._mqar import mqar
from ._recipe import SHORT_CONV, Candidate, Course, Part, Recipe, candidate

IDENTITY_EXAMPLES = (200, 300, 400, 600, 800, 1000, 2000)
AFTER_ATTENTION = ("hedgehog_window", "sink_window")  # take over from attention that is trained already


def zoology_cpu() -> Recipe:
    """`zoology-figure2` at a quarter of its widths and up to half of its lengths: accuracy by width at each length.

    Different here, beside the sizes: one model of each width learns all lengths, in the shares of `mqar-2026`, for the
    shortest teach it the task in a tenth of the steps; a vocabulary of 256, which narrow models can tell apart; and
    attention has rotary positions.
    """
    widths = (16, 32, 64, 128)
    attention, hyena = MixerSpec("attention", {"num_heads": 1}), MixerSpec("hyena", {"max_length": None})
    long_conv = MixerSpec("base_conv", {"conv_width": None, "max_length": None})
    candidates = (
        candidate((attention, attention), attention, widths, baseline=True),
        candidate((SHORT_CONV, long_conv), long_conv, widths),
        candidate((hyena, hyena), hyena, widths),
    )
    return replace(frontier_cpu(), name="zoology-cpu", candidates=candidates, place=(None, None), d_models=widths)


def frontier_cpu() -> Recipe:
    """`based-frontier` at width 64: accuracy against state for windows, and for the Taylor map at several widths.

    Trained and tested on the four sizes of `mqar-2026`, in its order of shares, so that none is longer than training.
    """

    def second(mixer: str, baseline: bool = False, **options: Any) -> Candidate:
        spec = MixerSpec(mixer, {"num_heads": 1, **options})
        return candidate((SHORT_CONV, spec), spec, (64,), baseline=baseline)

    sizes = mqar((64, 4), (64, 8), (128, 16), (256, 32), vocab_size=256)
    return Recipe(
        name="frontier-cpu",
        candidates=(
            second("attention", baseline=True, rotary_base=None),
            *(second("sliding_window", window=2**n, rotary_base=None) for n in range(3, 9)),
            *(second("based", feature_dim=f) for f in (4, 6, 8, 12, 16)),
        ),
        place=(SHORT_CONV, None),
        d_models=(64,),
        courses=(Course(tuple(map(Part, sizes, (4.0, 2.0, 1.0, 1.0))), sizes),),
        num_examples=30 * 2000,
        max_batch=32,
        batch_tokens=1 << 12,
        num_evaluations=20,
        warmup_share=0.1,
        lrs=(3e-3, 1e-2),
        seeds=(0,),
        contexts=(1024, 8192, 65536),
        throughput_seconds=1.5,
        num_validation=128,
        num_test=500,
    )


def anchor_identity_cpu() -> Recipe:
    """`anchor-identity` at width 128 and 800 steps, by which the training examples are known by heart."""
    mixers = ("attention", "sliding_window", "linear_attention", "based", "gated_delta_net", "mamba2", "hyena")
    candidates = tuple(_anchored(mixer, 4, baseline=mixer == "attention") for mixer in mixers)
    return _identity("anchor-identity-cpu", candidates, IDENTITY_EXAMPLES)


def anchor_depth_cpu() -> Recipe:
    """Identity learning with 1,000 examples for every mixer: one layer without and with a shift by one, four layers.

    The key stands behind the anchor. One layer that mixes by content finds the anchor, but not what stands behind it,
    unless each token has seen the one before it.
    """
    candidates = [candidate for mixer in MIXERS if mixer not in AFTER_ATTENTION for candidate in _by_depth(mixer)]
    return _identity("anchor-depth-cpu", tuple(candidates), (1000,))


def _by_depth(mixer: str) -> list[Candidate]:
    shifts = {"rwkv7": ("token_shift", False, True), "h3": ("shift", 1, 2)}
    option, *values = shifts.get(mixer, ("conv_width", None, 2))
    baseline = mixer == "attention"
    if option not in known_options(mixer):
        return [_anchored(mixer, layers, baseline=baseline) for layers in (1, 4)]
    return [
        *(_anchored(mixer, 1, baseline=baseline, **{option: value}) for value in values),
        _anchored(mixer, 4, baseline=baseline, **{option: values[0]}),
    ]


def _anchored(mixer: str, num_layers: int, baseline: bool, **options: Any) -> Candidate:
    length = {"max_length": None} if "max_length" in known_options(mixer) else {}
    spec = MixerSpec(mixer, {**length, **options})
    return candidate((spec,) * num_layers, spec, (128,), baseline=baseline, mlp="gelu")


def _identity(name: str, candidates: tuple[Candidate, ...], examples: tuple[int, ...]) -> Recipe:
    task = tasks.Identity()
    courses = (Course((Part(task, num_examples=n),), task.tests, name=f"{n} examples") for n in examples)
    return Recipe(
        name=name,
        candidates=candidates,
        place=(None,) * 4,
        d_models=(128,),
        mlp="gelu",
        courses=tuple(courses),
        num_examples=800 * 50,
        max_batch=50,
        batch_tokens=1 << 16,
        num_evaluations=16,
        warmup_share=0.1,
        target_accuracy=1.0,
        lrs=(1e-3,),
        seeds=(0,),
        contexts=(1024,),
        throughput_seconds=0.5,
        num_test=500,
    )
