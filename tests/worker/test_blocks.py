import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagestream.worker.engine.blocks import PADDING_BLOCK, BlockPool
from pagestream.worker.engine.prefix_cache import hash_block, root_hash


def test_every_block_but_the_padding_block_is_given_out_once():
    pool = BlockPool(9, 4)
    blocks = pool.allocate(8)
    assert sorted(blocks) == list(range(1, 9))
    assert PADDING_BLOCK not in blocks
    assert (pool.num_available, pool.num_in_use) == (0, 8)


def test_more_than_there_are_is_a_programming_error():
    with pytest.raises(AssertionError, match="9 blocks asked for, 8 available"):
        BlockPool(9, 4).allocate(9)


def test_releasing_twice_is_a_programming_error():
    pool = BlockPool(4, 4)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released more often than taken"):
        pool.release(blocks)


def test_a_named_block_stays_until_it_is_the_longest_idle():
    pool = BlockPool(4, 4)
    first, second, third = pool.allocate(3)
    names = [hash_block(root_hash(""), [n]) for n in range(3)]
    for name, block in zip(names, (first, second, third), strict=True):
        pool.cache.add(name, block)
    pool.release([second])
    pool.release([first])
    assert pool.cache.match([names[0]]) == [first]
    assert pool.allocate(1) == [second], "the one that rested longest goes first"
    assert pool.cache.match([names[1]]) == []
    pool.check()


def test_a_tail_is_evicted_before_its_head():
    pool = BlockPool(4, 4)
    blocks = pool.allocate(3)
    for n, block in enumerate(blocks):
        pool.cache.add(hash_block(root_hash(""), [n]), block)
    pool.release(blocks)
    assert pool.allocate(3) == blocks[::-1]


def test_a_shared_block_has_two_users():
    pool = BlockPool(4, 4)
    (block,) = pool.allocate(1)
    pool.cache.add(hash_block(root_hash(""), [1]), block)
    pool.share([block])
    pool.release([block])
    assert pool.num_in_use == 1
    pool.release([block])
    assert pool.num_in_use == 0
    assert pool.num_idle_among([block]) == 1


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_for(tokens, blocks):
    assert BlockPool(4, 16).blocks_for(tokens) == blocks


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("arns"), st.integers(0, 7)), max_size=60))
def test_whatever_happens_each_block_is_in_one_place(steps):
    pool = BlockPool(8, 4)
    held: list[list[int]] = []
    for number, (step, choice) in enumerate(steps):
        if step == "a" and choice <= pool.num_available:
            held.append(pool.allocate(choice))
        elif held and step == "r":
            pool.release(held.pop(choice % len(held)))
        elif held and step == "n":
            for block in held[choice % len(held)]:
                pool.cache.add(hash_block(root_hash(""), [number, block]), block)
        elif held and step == "s":
            blocks = held[choice % len(held)]
            pool.share(blocks)
            held.append(list(blocks))
        pool.check()
    for blocks in held:
        pool.release(blocks)
    assert pool.num_available == pool.num_usable
