"""Recipes of the other tasks, with their published settings; what the sources do not tell is ours, and is named."""

from dataclasses import replace

from subquad.mixers import MixerSpec

from .. import tasks
from ._recipe import SHORT_CONV, Candidate, Course, Part, Recipe, candidate, logspace

# One of each family; any other mixer can be named on the command line.
JUDGED = ("attention", "sliding_window", "linear_attention", "based", "gated_delta_net", "mamba2", "hyena")
MAD_EASIEST = (
    tasks.InContextRecall(),
    tasks.FuzzyRecall(),
    tasks.NoisyRecall(),
    tasks.SelectiveCopying(),
    tasks.Compression(),
    tasks.Memorization(),
)
ANCHOR_EXAMPLES = (200, 250, 300, 350, 400, 450, 500, 600, 1000)


def mad() -> Recipe:
    """MAD's six tasks at their easiest (arXiv 2403.17844): width 128, twice mixer and SwiGLU, 200 passes.

    Different here: float32, warm-up and decay to 0, weight decay 0.1 alone, and batches drawn with replacement instead
    of passes in order. MAD's score is the mean over tasks and difficulties: `mad-sweep`.
    """
    return _mad("mad", [_passes(task) for task in MAD_EASIEST])


def mad_sweep() -> Recipe:
    """`mad` at all published difficulties: each task at its easiest, and with one of its sizes harder at a time.

    Sizes are the vocabulary, the length, the share of noise, the tokens to copy, and the number of training examples.
    """
    recall, fuzzy, noisy, copying, compression, by_heart = MAD_EASIEST
    vocabularies, lengths = (32, 64, 128), (512, 1024)
    harder = [
        *(replace(task, vocab_size=size) for task in (recall, fuzzy, copying, compression) for size in vocabularies),
        *(replace(noisy, vocab_size=16 + size) for size in vocabularies),
        *(replace(noisy, noise_share=share) for share in (0.4, 0.6, 0.8)),
        *(replace(task, num_pairs=pairs) for task in (recall, noisy) for pairs in (128, 256, 512)),
        *(replace(fuzzy, seq_len=length) for length in (256, *lengths)),
        *(replace(copying, seq_len=length) for length in lengths),
        *(replace(copying, num_tokens=count) for count in (32, 64, 96)),
        *(replace(compression, seq_len=length) for length in (64, 128, 256)),
        *(replace(by_heart, vocab_size=size) for size in (512, 1024, 2048, 4096, 8192)),
    ]
    fewer = [(task, count) for task in MAD_EASIEST[:-1] for count in (6400, 3200, 1600, 800)]
    courses = [_passes(task) for task in (*MAD_EASIEST, *harder)]
    return _mad("mad-sweep", [*courses, *(_passes(task, count, f"{count} examples") for task, count in fewer)])


def _passes(task: tasks.Task, num_examples: int | None = None, name: str = "") -> Course:
    """200 over the published number of training examples, or over so many."""
    count = num_examples or (256 if isinstance(task, tasks.Memorization) else 12_800)
    return Course((Part(task, num_examples=count),), task.tests, name=name, num_examples=200 * count)


def _mad(name: str, courses: list[Course]) -> Recipe:
    recipe = _twice(
        name, tuple(courses), d_model=128, mlp="swiglu", num_examples=200 * 12_800, batch=128,
        lrs=(1e-4, 5e-4, 1e-3), num_test=1280,
    )  # fmt: skip
    return replace(recipe, batch_tokens=1 << 17)  # full batches at the longest, too


def mqar_forms() -> Recipe:
    """MQAR that forgets, MQAR with keys of two tokens, and a context that is read twice, one model each.

    Published are generators with these sizes (Zoology's code) and no experiments; steps and widths are ours.
    """
    return _ours("mqar-forms", (tasks.ForgettingMQAR(), tasks.CompositionalMQAR(), tasks.MQAR(num_passes=2)))


def jrt_disjointness() -> Recipe:
    """Which token two lists share, the short or the long list first (arXiv 2407.05483): four layers, BaseConv between.

    Published are the sizes, 20,000 training examples of each, and 1,000 tests; learning rates and passes are ours.
    """
    sizes = ((4, 16), (8, 32), (16, 64), (4, 128), (16, 256), (4, 256))
    longer = (*sizes, (4, 512), (16, 512), (4, 768), (16, 768))
    train, tests = (
        tuple(tasks.SetDisjointness(first_len=a, second_len=b) for pair in which for a, b in (pair, pair[::-1]))
        for which in (sizes, longer)
    )
    parts = tuple(Part(task, num_examples=20_000) for task in train)
    layers = {name: (SHORT_CONV, _spec(name), SHORT_CONV, _spec(name)) for name in JUDGED}
    return _recipe(
        "jrt-disjointness", (Course(parts, tests),), layers, (SHORT_CONV, None, SHORT_CONV, None), d_model=128,
        num_examples=16 * len(parts) * 20_000, batch=256, lrs=logspace(-4, -2, 4), num_test=1000,
    )  # fmt: skip


def anchor_identity() -> Recipe:
    """Identity learning against the number of training examples (arXiv 2401.08309): four layers of width 400.

    Published test accuracies of attention, from 200 to 1,000 examples: 4, 9, 25, 57, 77, 89, 95, 99, 100 %. Different
    here: norms come before the layers, heads are as the mixer's default, and as many steps for all, 80,000, as the
    published 4,000 passes over 1,000 examples take.
    """
    return _anchor("anchor-identity", identity_courses(*ANCHOR_EXAMPLES), num_examples=4000 * 1000)


def identity_courses(*examples: int) -> tuple[Course, ...]:
    """One for each number of training examples."""
    task = tasks.Identity()
    return tuple(Course((Part(task, num_examples=n),), task.tests, name=f"{n} examples") for n in examples)


def anchor_composition() -> Recipe:
    """Two anchors one after the other, the pair 3, 4 held out (arXiv 2401.08309), with 20,000 examples.

    Published for attention with 10 layers: 100 % for pairs that were trained on, 94 % for the other.
    """
    task = tasks.Composition()
    course = Course((Part(task, num_examples=20_000),), task.tests)
    return _anchor("anchor-composition", (course,), num_examples=200 * 20_000)


def anchors() -> Recipe:
    """Every other anchor function (arXiv 2401.08309), each with its published number of examples; ours with 20,000."""
    sizes = {
        tasks.FrequencyTest(): 2000,
        tasks.TenAnchors(): 20_000,
        tasks.StatisticalOutput(): 1800,
        tasks.Synonym(): 6000,
        tasks.MultiAnchor(): 10_000,
        tasks.MultiAnchor(intervals=((20, 70), (50, 100))): 10_000,
        tasks.MultiInterval(): 20_000,
        tasks.Recitation(): 4000,
        tasks.ReadingComprehension(): 2000,
        tasks.Classification(): 100_000,
        tasks.WorkingMemory(): 40_000,
    }
    courses = tuple(Course((Part(task, num_examples=count),), task.tests) for task, count in sizes.items())
    return _anchor("anchors", courses, num_examples=200 * 20_000)


def copying() -> Recipe:
    """Copying, selective copying, induction, a phone book and needles, one model each; steps and widths are ours."""
    chosen = (
        tasks.Copying(),
        tasks.SelectiveCopying(),
        tasks.Induction(),
        tasks.Phonebook(),
        *(
            tasks.NeedleInNoise(num_keys=keys, num_values=values, num_queries=queries)
            for keys, values, queries in ((1, 1, 1), (4, 1, 1), (1, 4, 1), (4, 1, 4))
        ),
    )
    return _ours("copying", chosen)


def state_tracking() -> Recipe:
    """Word problems (arXiv 2404.08819), parity and flip-flops (arXiv 2306.00946), one model each; steps are ours."""
    groups = tuple(tasks.WordProblem(group=group) for group in ("Z60", "A4xZ5", "A5", "S5"))
    return _ours("state-tracking", (*groups, tasks.Parity(), tasks.FlipFlop()))


def stack_languages() -> Recipe:
    """Reverse string, Dyck and stack manipulation (arXiv 2405.04515), one model each; steps are ours."""
    return _ours("stack-languages", (tasks.ReverseString(), tasks.Dyck(), tasks.StackManipulation()))


def bapo() -> Recipe:
    """BAPO's problems (arXiv 2505.08140), easy ones first; published are definitions and sizes, for models at rest."""
    easy = (tasks.Index(), tasks.Equality(), tasks.Disjointness(), tasks.Match2())
    hard = (tasks.Majority(), tasks.Match3(), tasks.Unique(), tasks.SetDifference(), tasks.Reachability())
    return _ours("bapo", easy + hard)


def _anchor(name: str, courses: tuple[Course, ...], num_examples: int) -> Recipe:
    layers = {mixer: (_spec(mixer),) * 4 for mixer in JUDGED}
    return _recipe(
        name, courses, layers, (None,) * 4, d_model=400, mlp="gelu", num_examples=num_examples, batch=50,
        lrs=(1e-4, 2e-4, 5e-4, 1e-3), num_test=500,
    )  # fmt: skip


def _ours(name: str, chosen: tuple[tasks.Task, ...]) -> Recipe:
    courses = tuple(map(Course.of, chosen))
    return _twice(
        name, courses, d_model=128, mlp="swiglu", num_examples=64 * 20_000, batch=64, lrs=logspace(-3.5, -2, 4),
        num_test=1000,
    )  # fmt: skip


def _twice(name: str, courses: tuple[Course, ...], **sizes) -> Recipe:
    layers = {mixer: (_spec(mixer),) * 2 for mixer in JUDGED}
    return _recipe(name, courses, layers, (None, None), **sizes)


def _recipe(
    name: str,
    courses: tuple[Course, ...],
    layers: dict[str, tuple[MixerSpec, ...]],
    place: tuple[MixerSpec | None, ...],
    *,
    d_model: int,
    num_examples: int,
    batch: int,
    lrs: tuple[float, ...],
    num_test: int,
    mlp: str | None = None,
) -> Recipe:
    return Recipe(
        name=name,
        candidates=tuple(_candidate(mixer, specs, d_model, mlp) for mixer, specs in layers.items()),
        place=place,
        d_models=(d_model,),
        mlp=mlp,
        courses=courses,
        num_examples=num_examples,
        max_batch=batch,
        batch_tokens=1 << 16,
        num_evaluations=40,
        warmup_share=0.1,
        target_accuracy=1.0,
        lrs=lrs,
        seeds=(0,),
        contexts=(1024, 8192),
        throughput_seconds=5.0,
        num_test=num_test,
    )


def _candidate(mixer: str, layers: tuple[MixerSpec, ...], d_model: int, mlp: str | None) -> Candidate:
    judged = next(spec for spec in layers if spec.name == mixer)
    return candidate(layers, judged, (d_model,), baseline=mixer == "attention", mlp=mlp)


def _spec(mixer: str) -> MixerSpec:
    return MixerSpec(mixer, {"max_length": None} if mixer == "hyena" else {})
