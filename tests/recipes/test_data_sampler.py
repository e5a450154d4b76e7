"""The order of batches: pure, resumable, and the same whether one process or several draw it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe_common.data.samples.sampler import Key, ResumableBatchSampler
from recipe_common.errors import RecipeError

sizes = st.integers(0, 40)
batch_sizes = st.integers(1, 9)


def sampler(size: int = 23, batch_size: int = 4, **changes: Any) -> ResumableBatchSampler:
    return ResumableBatchSampler(size, batch_size, **{"seed": 0, "shuffle": True, **changes})


def indices(batches: list[list[Key]]) -> list[int]:
    return [index for batch in batches for _, index in batch]


@given(size=sizes, batch_size=batch_sizes, shuffle=st.booleans(), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_sample_once(size: int, batch_size: int, shuffle: bool, epoch: int) -> None:
    drawn = sampler(size, batch_size, shuffle=shuffle)
    drawn.set_epoch(epoch)
    batches = list(drawn)
    assert sorted(indices(batches)) == list(range(size))
    assert len(batches) == len(drawn)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert {key[0] for batch in batches for key in batch} <= {epoch}


@given(size=sizes, batch_size=batch_sizes, used=st.integers(0, 50))
def test_a_restored_sampler_continues_where_the_first_one_stopped(size: int, batch_size: int, used: int) -> None:
    first = sampler(size, batch_size)
    first.set_epoch(2)
    whole = list(first)
    for _ in whole[:used]:
        first.advance()
    second = sampler(size, batch_size)
    second.load_state_dict(first.state_dict())
    assert list(second) == list(first) == whole[used:]
    assert len(second) == len(whole)


def test_iterating_does_not_move_the_offset() -> None:
    drawn = sampler()
    assert list(drawn) == list(drawn)
    assert drawn.offset == 0


def test_the_order_depends_on_seed_and_epoch() -> None:
    orders = []
    for seed in (0, 1):
        for epoch in (0, 1):
            drawn = sampler(seed=seed)
            drawn.set_epoch(epoch)
            orders.append(indices(list(drawn)))
    assert len({tuple(order) for order in orders}) == 4


def test_a_new_epoch_begins_at_its_first_batch() -> None:
    drawn = sampler()
    drawn.advance()
    drawn.set_epoch(1)
    assert (drawn.epoch, drawn.offset) == (1, 0)


def test_unshuffled_is_in_order() -> None:
    assert indices(list(sampler(shuffle=False))) == list(range(23))


def test_drop_last_leaves_out_the_incomplete_batch() -> None:
    assert [len(batch) for batch in sampler(drop_last=True)] == [4] * 5


@given(size=st.integers(1, 40), batch_size=batch_sizes, world_size=st.integers(1, 4), drop_last=st.booleans())
def test_ranks_joined_are_one_process(size: int, batch_size: int, world_size: int, drop_last: bool) -> None:
    filled = -(-size // world_size) * world_size
    ranks = [
        list(sampler(size, batch_size, rank=rank, world_size=world_size, drop_last=drop_last))
        for rank in range(world_size)
    ]
    alone = list(sampler(size, batch_size * world_size, drop_last=drop_last))
    assert len({len(batches) for batches in ranks}) == 1
    joined = [sorted(key for batch in step for key in batch) for step in zip(*ranks, strict=True)]
    if filled == size or drop_last:
        assert joined[: len(alone)] == [sorted(batch) for batch in alone]
    else:
        assert sum(len(batch) for batch in joined) == filled


@given(size=sizes, batch_size=batch_sizes, world_size=st.integers(1, 4))
def test_evaluation_counts_every_sample_once_over_all_ranks(size: int, batch_size: int, world_size: int) -> None:
    ranks = [sampler(size, batch_size, shuffle=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(index for rank in ranks for index in indices(list(rank))) == list(range(size))


@pytest.mark.parametrize("change", [{"size": 22}, {"batch_size": 5}, {"seed": 1}, {"shuffle": False}])
def test_a_state_of_another_order_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="same data order"):
        sampler(**change).load_state_dict(sampler().state_dict())


@pytest.mark.parametrize("change", [{"size": -1}, {"batch_size": 0}, {"rank": 1}, {"rank": -1, "world_size": 2}])
def test_impossible_arguments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="Found size="):
        sampler(**change)
