from pagestream.worker.engine.prefix_cache import PrefixCache, hash_block, root_hash


def chain(salt: str, *blocks: list[int]) -> list[bytes]:
    names, parent = [], root_hash(salt)
    for tokens in blocks:
        parent = hash_block(parent, tokens)
        names.append(parent)
    return names


def test_a_name_depends_on_everything_before_it():
    assert chain("", [1, 2], [3, 4])[1] != chain("", [1, 9], [3, 4])[1]
    assert chain("", [1, 2]) != chain("tenant", [1, 2])
    assert chain("", [1, 2], [3, 4]) == chain("", [1, 2], [3, 4])


def test_ids_do_not_run_into_each_other():
    assert chain("", [1, 23]) != chain("", [12, 3])
    assert chain("", [2**31]) != chain("", [0])


def test_a_match_ends_at_the_first_unknown_block():
    cache = PrefixCache()
    first, second, third = chain("", [1], [2], [3])
    cache.add(first, 10)
    cache.add(third, 30)
    assert cache.match([first, second, third]) == [10]


def test_the_first_holder_of_equal_tokens_keeps_the_name():
    cache = PrefixCache()
    (name,) = chain("", [1])
    cache.add(name, 10)
    cache.add(name, 20)
    assert cache.match([name]) == [10]
    assert cache.rest(10)
    assert not cache.rest(20), "a block without a name is free at once"
    assert cache.evict() == 10
    assert cache.match([name]) == []
    assert cache.num_idle == 0


def test_a_woken_block_is_not_evicted():
    cache = PrefixCache()
    for block, name in enumerate(chain("", [1], [2])):
        cache.add(name, block)
        cache.rest(block)
    cache.wake(0)
    assert not cache.is_idle(0)
    assert cache.evict() == 1
