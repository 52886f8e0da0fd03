"""Recipes of published pictures at sizes that two CPU cores do in an hour or two."""

from dataclasses import replace
from typing import Any

from subquad.mixers import MIXERS, MixerSpec, known_options

from ._mqar import mqar_2026
from ._recipe import SHORT_CONV, Candidate, Recipe, candidate
from ._tasks import anchor_identity, identity_courses

AFTER_ATTENTION = ("hedgehog_window", "sink_window")  # take over from attention that is trained already


def zoology_cpu() -> Recipe:
    """`zoology-figure2` at a quarter of its widths and up to half of its lengths: accuracy by width at each length.

    Different here, beside the sizes: one model of each width learns all lengths, as in `mqar-2026`, for the shortest
    teach it the task in a tenth of the steps; a vocabulary of 256, which narrow models can tell apart; and attention
    has rotary positions.
    """
    widths = (16, 32, 64, 128)
    attention, hyena = MixerSpec("attention", {"num_heads": 1}), MixerSpec("hyena", {"max_length": None})
    long_conv = MixerSpec("base_conv", {"conv_width": None, "max_length": None})
    candidates = (
        candidate((attention, attention), attention, widths, baseline=True),
        candidate((SHORT_CONV, long_conv), long_conv, widths),
        candidate((hyena, hyena), hyena, widths),
    )
    return replace(mqar_2026(), name="zoology-cpu", candidates=candidates, d_models=widths, lrs=(3e-3, 1e-2))


def frontier_cpu() -> Recipe:
    """`based-frontier` at width 64: accuracy against state for windows, and for the Taylor map at several widths.

    Trained and tested as `mqar-2026` is, so that no test is longer than training.
    """

    def second(mixer: str, baseline: bool = False, **options: Any) -> Candidate:
        spec = MixerSpec(mixer, {"num_heads": 1, **options})
        return candidate((SHORT_CONV, spec), spec, (64,), baseline=baseline)

    candidates = (
        second("attention", baseline=True, rotary_base=None),
        *(second("sliding_window", window=2**n, rotary_base=None) for n in range(3, 9)),
        *(second("based", feature_dim=f) for f in (4, 6, 8, 12, 16)),
    )
    place = (SHORT_CONV, None)
    return replace(mqar_2026(), name="frontier-cpu", candidates=candidates, place=place, lrs=(3e-3, 1e-2))


def anchor_identity_cpu() -> Recipe:
    """`anchor-identity` at width 128 and 800 steps, by which the training examples are known by heart."""
    return replace(
        anchor_identity().with_widths((128,)),
        name="anchor-identity-cpu",
        courses=identity_courses(200, 300, 400, 600, 800, 1000, 2000),
        num_examples=800 * 50,
        num_evaluations=16,
        lrs=(1e-3,),
        contexts=(1024,),
        throughput_seconds=0.5,
    )


def anchor_depth_cpu() -> Recipe:
    """Identity learning with 1,000 examples for every mixer: one layer without and with a shift by one, four layers.

    The key stands behind the anchor. One layer that mixes by content finds the anchor, but not what stands behind it,
    unless each token has seen the one before it.
    """
    mixers = [mixer for mixer in MIXERS if mixer not in AFTER_ATTENTION]
    candidates = tuple(candidate for mixer in mixers for candidate in _by_depth(mixer))
    return replace(
        anchor_identity_cpu(), name="anchor-depth-cpu", candidates=candidates, courses=identity_courses(1000)
    )


def _by_depth(mixer: str) -> list[Candidate]:
    """One layer without a shift and, where there is one, with it; four layers without."""
    shifts = {"rwkv7": ("token_shift", False, True), "h3": ("shift", 1, 2)}
    option, without, shifted = shifts.get(mixer, ("conv_width", None, 2))
    if option not in known_options(mixer):
        return [_repeated(mixer, num_layers) for num_layers in (1, 4)]
    depths = ((1, without), (1, shifted), (4, without))
    return [_repeated(mixer, num_layers, **{option: value}) for num_layers, value in depths]


def _repeated(mixer: str, num_layers: int, **options: Any) -> Candidate:
    length = {"max_length": None} if "max_length" in known_options(mixer) else {}
    spec = MixerSpec(mixer, {**length, **options})
    return candidate((spec,) * num_layers, spec, (128,), baseline=mixer == "attention", mlp="gelu")
