"""One-to-one matching against all permutations and against SciPy."""

from __future__ import annotations

import itertools

from d2_ext.modeling.assigners.matching import match_one_to_one

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

scipy_optimize = pytest.importorskip("scipy.optimize")


def by_scipy(quality: Tensor) -> Tensor:
    rows, columns = scipy_optimize.linear_sum_assignment(quality.numpy(), maximize=True)
    result = torch.full((len(quality),), -1)
    result[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return result


def total(quality: Tensor, columns: Tensor) -> float:
    served = columns >= 0
    return quality.double()[served, columns[served]].sum().item()


@pytest.mark.parametrize("seed", range(30))
def test_no_permutation_is_better(seed: int) -> None:
    quality = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed))
    best = max(
        sum(quality[row, column].item() for row, column in enumerate(columns))
        for columns in itertools.permutations(range(6), 4)
    )
    assert total(quality, match_one_to_one(quality)) == pytest.approx(best)


def test_a_chain_of_three_rows_is_moved() -> None:
    # Row 2 wants column 0 most; it gets it only if row 0 goes to 1 and row 1 from there to 2: 0.5 + 0.5 + 0.9.
    quality = torch.tensor([[0.6, 0.5, 0.0], [0.0, 0.6, 0.5], [0.9, 0.0, 0.0]])
    assert match_one_to_one(quality).tolist() == [1, 2, 0]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), rows=st.integers(1, 9), columns=st.integers(1, 14))
def test_the_sum_is_scipys_also_with_ties_and_more_rows_than_columns(
    data: st.DataObject, rows: int, columns: int
) -> None:
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), min_size=rows * columns, max_size=rows * columns)
    quality = torch.tensor(data.draw(values)).view(rows, columns)
    found = match_one_to_one(quality)
    served = found[found >= 0]
    assert len(served) == min(rows, columns) == len(served.unique())
    assert total(quality, found) == pytest.approx(total(quality, by_scipy(quality)))


@pytest.mark.parametrize("rows", [1, 20, 80])
@pytest.mark.parametrize("contested", [False, True], ids=["spread", "contested"])
def test_the_assignment_is_scipys(rows: int, contested: bool) -> None:
    quality = torch.full((rows, 3000), -1.0)
    shared = torch.randperm(3000)[: 3 * rows]
    for row in range(rows):
        columns = shared[torch.randint(len(shared), (20,))] if contested else torch.randperm(3000)[:45]
        quality[row, columns] = torch.rand(len(columns))
    quality[rows // 2] = -1.0  # a row that no column suits
    assert torch.equal(match_one_to_one(quality), by_scipy(quality))


def test_rows_that_no_column_suits_take_the_first_free_ones() -> None:
    quality = torch.full((3, 5), -1.0)
    quality[1, 0] = 0.5
    assert match_one_to_one(quality).tolist() == by_scipy(quality).tolist() == [1, 0, 2]


def test_nothing_to_match_gives_nothing() -> None:
    assert match_one_to_one(torch.zeros(0, 5)).tolist() == []
    assert match_one_to_one(torch.zeros(2, 0)).tolist() == [-1, -1]
