"""Samplers, on either implementation of Detectron2."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any
from unittest import mock

import pytest
import torch
from detectron2.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from torch.utils.data import SequentialSampler


def take(iterable: Iterable[Any], count: int) -> list[Any]:
    return list(itertools.islice(iter(iterable), count))


def as_rank(rank: int, world_size: int) -> Any:
    return mock.patch.multiple("detectron2.utils.comm", get_rank=lambda: rank, get_world_size=lambda *args: world_size)


def test_each_epoch_of_training_is_a_permutation_drawn_from_one_generator() -> None:
    generator = torch.Generator()
    generator.manual_seed(42)
    expected = torch.cat([torch.randperm(7, generator=generator) for _ in range(3)]).tolist()
    assert take(TrainingSampler(7, seed=42), 21) == expected
    # SEED = -1 seeds the sampler all the same.
    assert take(TrainingSampler(10, seed=-1), 10) == [1, 4, 6, 2, 0, 5, 8, 7, 9, 3]


def test_each_iteration_starts_the_sequence_anew_and_without_shuffling_it_is_that_of_the_data_set() -> None:
    sampler = TrainingSampler(5, seed=3)
    assert take(sampler, 12) == take(sampler, 12)
    assert take(TrainingSampler(3, shuffle=False, seed=1), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_processes_share_one_sequence() -> None:
    whole = take(TrainingSampler(5, seed=0), 12)
    for rank in range(3):
        with as_rank(rank, 3):
            sampler = TrainingSampler(5, seed=0)
        assert take(sampler, 4) == whole[rank::3]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError), (None, TypeError)])
def test_a_bad_size_is_refused(size: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        TrainingSampler(size, seed=0)


def records_of(*classes: list[int]) -> list[dict[str, Any]]:
    return [{"annotations": [{"category_id": c} for c in per_image]} for per_image in classes]


def test_repeat_factors_by_hand() -> None:
    # Class 0 is in 4 of 5 pictures, class 1 in 1 of 5. With the threshold 0.45: class 0 max(1, 0.45/0.8) = 1,
    # class 1 0.45/0.2 = 2.25, or its root 1.5. A picture takes the largest factor of its classes.
    records = records_of([0], [0, 1, 0], [0], [], [0])
    root = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.45)
    plain = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.45, sqrt=False)
    torch.testing.assert_close(root, torch.tensor([1.0, 1.5, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(plain, torch.tensor([1.0, 2.25, 1.0, 1.0, 1.0]))


def test_whole_repeat_factors_repeat_exactly() -> None:
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 3.0, 0.0, 2.0]), shuffle=False, seed=0)
    assert take(sampler, 12) == [0, 1, 1, 1, 3, 3] * 2


def test_fractional_repeat_factors_hold_on_average() -> None:
    factors = torch.tensor([1.5, 0.25, 1.0])
    drawn = Counter(take(RepeatFactorTrainingSampler(factors, seed=0), 2750))  # about 1000 epochs
    epochs = drawn[2]
    assert drawn[0] / epochs == pytest.approx(1.5, abs=0.06)
    assert drawn[1] / epochs == pytest.approx(0.25, abs=0.06)


def test_the_order_of_repeated_elements_is_fixed_by_the_seed() -> None:
    generator = torch.Generator()
    generator.manual_seed(4)
    factors = torch.tensor([1.5, 2.2, 0.3, 1.0])
    expected: list[int] = []
    for _ in range(3):  # first the rounding of an epoch, then its order
        up = torch.rand(4, generator=generator) < factors % 1
        epoch = [i for i in range(4) for _ in range(int(factors[i]) + int(up[i]))]
        expected += [epoch[j] for j in torch.randperm(len(epoch), generator=generator)]
    assert take(RepeatFactorTrainingSampler(factors, seed=4), len(expected)) == expected


@pytest.mark.parametrize(
    ("size", "world_size", "shards"),
    [
        (5, 1, [[0, 1, 2, 3, 4]]),
        (5, 3, [[0, 1], [2, 3], [4]]),
        (2, 4, [[0], [1], [], []]),
        (8, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_inference_covers_each_element_once(size: int, world_size: int, shards: list[list[int]]) -> None:
    for rank, shard in enumerate(shards):
        assert list(InferenceSampler._get_local_indices(size, world_size, rank)) == shard
        with as_rank(rank, world_size):
            sampler = InferenceSampler(size)
        assert list(sampler) == shard
        assert len(sampler) == len(shard)


def test_a_random_subset_stays_the_same_in_all_epochs() -> None:
    drawn = take(RandomSubsetTrainingSampler(20, 0.35, seed_shuffle=1, seed_subset=2), 35)
    counts = Counter(drawn)
    assert len(counts) == 7  # int(20 * 0.35)
    assert set(counts.values()) == {5}
    other = take(RandomSubsetTrainingSampler(20, 0.35, seed_shuffle=9, seed_subset=2), 7)
    assert set(other) == set(counts)
    assert other != drawn[:7]


def test_batches_hold_one_group_and_what_is_left_waits_for_the_next_iteration() -> None:
    groups = [0, 1, 0, 1, 1, 0, 0, 1]
    assert take(GroupedBatchSampler(SequentialSampler(range(8)), groups, 2), 9) == [[0, 2], [1, 3], [5, 6], [4, 7]]
    sampler = GroupedBatchSampler(SequentialSampler(range(3)), [0, 0, 0], 2)
    assert [take(sampler, 9) for _ in range(2)] == [[[0, 1]], [[2, 0], [1, 2]]]
    with pytest.raises(NotImplementedError):
        len(sampler)
