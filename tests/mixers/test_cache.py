"""The cache: appending is cheap, and no cache ever sees what another one appended."""

import pytest
import torch

from subquad.mixers._cache import Cache


def pair(t, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, t, 3, 4, generator=generator), torch.randn(2, t, 3, 5, generator=generator)


def assert_holds(cache, *parts):
    for held, expected in zip(cache.tokens, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(held, torch.cat(expected, dim=1), rtol=0, atol=0)


@pytest.mark.parametrize("grad", [False, True])
def test_it_holds_what_was_appended_in_order(grad):
    parts = [pair(t, seed=t) for t in (5, 1, 1, 7, 2)]
    cache = Cache.of(*parts[0])
    with torch.set_grad_enabled(grad):
        for part in parts[1:]:
            cache = cache.append(*part)
    assert_holds(cache, *parts)
    assert len(cache) == 16 and cache.nbytes == 2 * 16 * 3 * (4 + 5) * 4


def test_it_starts_without_a_copy():
    k, v = pair(5)
    assert [x.data_ptr() for x in Cache.of(k, v).tokens] == [k.data_ptr(), v.data_ptr()]


@torch.no_grad()
def test_appending_to_the_newest_writes_in_place():
    """Buffers double: of 200 appended tokens, each moved twice at most on average."""
    cache = Cache.of(*pair(1))
    moves, moved = 0, 0
    for seed in range(200):
        before = cache.tokens[0].data_ptr()
        held = len(cache)
        cache = cache.append(*pair(1, seed))
        if cache.tokens[0].data_ptr() != before:
            moves, moved = moves + 1, moved + held
        assert cache.capacity <= 2 * len(cache)
    assert moves <= 8 and moved <= 2 * 200


@torch.no_grad()
def test_older_caches_keep_their_tokens():
    start = Cache.of(*pair(3)).append(*pair(1, 1))  # with room to spare
    first = start.append(*pair(1, 2))
    second = start.append(*pair(2, 3))
    third = first.append(*pair(1, 4))
    assert_holds(start, pair(3), pair(1, 1))
    assert_holds(first, pair(3), pair(1, 1), pair(1, 2))
    assert_holds(second, pair(3), pair(1, 1), pair(2, 3))
    assert_holds(third, pair(3), pair(1, 1), pair(1, 2), pair(1, 4))
    assert first.tokens[0].data_ptr() == start.tokens[0].data_ptr() == third.tokens[0].data_ptr()
    assert second.tokens[0].data_ptr() != start.tokens[0].data_ptr()


@torch.no_grad()
def test_the_last_tokens_slide_through_a_bounded_buffer():
    parts = [pair(1, seed) for seed in range(60)]
    cache = Cache.of(*parts[0])
    buffers = set()
    for i, part in enumerate(parts[1:], start=1):
        cache = cache.append(*part).last(6)
        assert_holds(cache, *parts[max(0, i - 5) : i + 1])
        assert cache.capacity <= 14
        buffers.add(cache.tokens[0].untyped_storage().data_ptr())
    assert len(buffers) < 20


def test_no_tokens_at_all():
    cache = Cache.of(*pair(3)).last(0)
    assert len(cache) == cache.nbytes == 0
    assert_holds(cache.append(*pair(2, 1)), pair(2, 1))


def test_with_gradients_nothing_is_written_in_place():
    """The backward pass of a weight needs the tokens, though they themselves need no gradient."""
    weight = torch.ones(4, requires_grad=True)
    with torch.no_grad():
        cache = Cache.of(*pair(3)).append(*pair(1, 1))  # with room to spare
    sums, seen = 0.0, 0.0
    for seed in range(3):
        cache = cache.append(*pair(1, seed))
        sums, seen = sums + (cache.tokens[0] * weight).sum(), seen + cache.tokens[0].sum(dim=(0, 1, 2))
    torch.testing.assert_close(torch.autograd.grad(sums, weight)[0], seen)


def test_gradients_reach_the_tokens_until_they_are_detached():
    k, v = (x.requires_grad_() for x in pair(3))
    cache = Cache.of(k, v).append(*pair(1))
    (dk,) = torch.autograd.grad((cache.tokens[0] ** 2).sum(), k)
    torch.testing.assert_close(dk, 2 * k)
    assert not any(x.requires_grad for x in cache.detach().tokens)


def test_a_cache_from_inference_mode_can_be_continued_outside():
    with torch.inference_mode():
        cache = Cache.of(*pair(3)).append(*pair(1, 1))
    with torch.no_grad():
        assert_holds(cache.append(*pair(1, 2)), pair(3), pair(1, 1), pair(1, 2))


@pytest.mark.parametrize("change", [lambda x: x[:1], lambda x: x[:, :, :1], lambda x: x.double()])
def test_tokens_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match="continue a state with the batch, the mixer and the autocast setting"):
        Cache.of(*pair(3)).append(*(change(x) for x in pair(1)))
