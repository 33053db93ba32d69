import torch

from appo.engines.hf.prefix_cache import BLOCK_TOKENS, PrefixCache


def states_of(token_ids: tuple[int, ...]) -> torch.Tensor:
    """``[1, 1, 1, T, 1]``, the tokens themselves in place of keys."""
    return torch.tensor(token_ids, dtype=torch.float32).view(1, 1, 1, -1, 1)


def found(cache: PrefixCache, token_ids: tuple[int, ...]) -> list[int]:
    states = cache.find(token_ids)
    return [] if states is None else states.flatten().int().tolist()


def stored(*sequences: tuple[int, ...], max_tokens: int = 1000) -> PrefixCache:
    cache = PrefixCache(max_tokens)
    for sequence in sequences:
        cache.insert(sequence, states_of(sequence))
    return cache


def test_finds_exactly_what_is_shared():
    known = tuple(range(50))
    cache = stored(known)
    assert found(cache, known) == list(known)
    assert found(cache, (*known, 7, 8)) == list(known)
    assert found(cache, (*known[:37], 99, 98)) == list(known[:37])
    assert found(cache, known[:BLOCK_TOKENS]) == list(known[:BLOCK_TOKENS])
    assert found(cache, known[: BLOCK_TOKENS - 1]) == []
    assert found(cache, (99, *known)) == []


def test_finds_the_longest_of_several():
    base = tuple(range(32))
    long, short = (*base, *range(100, 132)), (*base, *range(200, 216))
    for cache in (stored(long, short), stored(short, long)):
        assert found(cache, (*long, 5)) == list(long)
        assert found(cache, (*short, 5)) == list(short)


def test_equal_hashes_of_unlike_tokens_do_not_deceive():
    # Python hashes -1 and -2 alike.
    a, b = (-1,) * BLOCK_TOKENS, (-2,) * BLOCK_TOKENS
    assert hash(a) == hash(b)
    assert found(stored(a), b) == []


def test_a_continuation_takes_the_place_of_what_it_continues():
    base = tuple(range(40))
    cache = stored(base, (*base, *range(50, 60)))
    assert cache.num_tokens == 50
    assert found(cache, base) == list(base)


def test_what_was_used_least_recently_leaves_first():
    a, b, c = (tuple(range(start, start + 20)) for start in (0, 100, 200))
    cache = stored(a, b, max_tokens=40)
    assert found(cache, a)
    cache.insert(c, states_of(c))
    assert cache.num_tokens == 40
    assert found(cache, a) == list(a)
    assert found(cache, b) == []
    assert found(cache, c) == list(c)


def test_keeps_nothing_without_room_and_nothing_after_clear():
    sequence = tuple(range(20))
    assert found(stored(sequence, max_tokens=19), sequence) == []
    assert not PrefixCache(0).accepts(16)
    cache = stored(sequence)
    cache.clear()
    assert found(cache, sequence) == []
    assert cache.num_tokens == 0
