"""Exact assignment of few rows to many columns, fast where most rows can have the column they like best.

The algorithm is that of shortest augmenting paths with dual prices (Jonker and Volgenant 1987, in the rectangular form
of Crouse 2016, which SciPy uses too), evaluated lazily: a column that no row holds has price zero, so of all free
columns only the best one of a row can end a path. A path then walks over the held columns only, at most M of
them, instead of over all C; a row whose best column is free needs no search at all.

Letters: M rows (boxes), C columns (locations).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SAMPLE_STEP = 97  # of the columns that bound a row's shortlist, which then holds about as many columns


def match_one_to_one(quality: Tensor) -> Tensor:
    """Give each row a column of its own so that the sum of the chosen qualities is largest.

    Args:
        quality: (M, C) finite, on any device.

    Returns:
        (M,) index of the column on the CPU; -1 for the rows left over where M > C. Of equally good columns a row
        takes the first free one, as ``scipy.optimize.linear_sum_assignment(quality, maximize=True)`` does.

    Example:
        >>> match_one_to_one(torch.tensor([[0.9, 0.8, 0.0], [0.9, 0.1, 0.0]]))
        tensor([1, 0])
    """
    matrix = quality.detach().cpu().numpy()
    num_rows, num_columns = matrix.shape
    if num_rows <= num_columns:
        return torch.from_numpy(_LazyMatcher(matrix).solve())
    rows = _LazyMatcher(np.ascontiguousarray(matrix.T)).solve()
    columns = torch.full((num_rows,), -1)
    columns[torch.from_numpy(rows)] = torch.arange(num_columns)
    return columns


class _LazyMatcher:
    """State of one matching: who holds which column at which price.

    A *slot* is the place of a column in the order in which columns were first taken.
    """

    def __init__(self, quality: np.ndarray) -> None:
        num_rows = len(quality)
        self.quality = quality
        self.held = np.empty(num_rows, dtype=np.int64)  # column of each slot
        self.price = np.zeros(num_rows)  # dual of each slot's column, at most 0
        self.num_held = 0
        self.slot_of_column: dict[int, int] = {}
        self.holder = [-1] * num_rows  # row of each slot
        self.slot_of_row = [-1] * num_rows
        self.row_dual = [0.0] * num_rows
        self.shortlists: dict[int, list[int]] = {}  # row -> its next best columns, best last

    def solve(self) -> np.ndarray:
        """Serve the rows in order; later rows may push earlier ones to other columns."""
        if self.quality.size == 0:
            return np.empty(len(self.quality), dtype=np.int64)
        favorites = self.quality.argmax(axis=1)  # the first of equal ones
        duals = (-self.quality[np.arange(len(favorites)), favorites].astype(np.float64)).tolist()
        for row, column in enumerate(favorites.tolist()):
            if column in self.slot_of_column:
                self._augment(row)
            else:
                self.row_dual[row] = duals[row]
                self._take(row, column)
        return self.held[self.slot_of_row]

    def _take(self, row: int, column: int) -> None:
        slot = self.num_held
        self.held[slot] = column
        self.holder[slot] = row
        self.slot_of_column[column] = self.slot_of_row[row] = slot
        self.num_held += 1

    def _free_column(self, row: int) -> int:
        """The row's best column that no row holds, the first of equal ones."""
        if row not in self.shortlists:
            # The columns above the best of a sample, worst first: all of the best few, without sorting the whole row.
            values = self.quality[row]
            best = (values > values[::SAMPLE_STEP].max()).nonzero()[0]
            self.shortlists[row] = best[(-values[best]).argsort(kind="stable")][::-1].tolist()
        shortlist = self.shortlists[row]
        while shortlist and shortlist[-1] in self.slot_of_column:  # a column that was taken is never free again
            shortlist.pop()
        if shortlist:
            return shortlist[-1]
        values = self.quality[row].copy()
        values[self.held[: self.num_held]] = -np.inf
        return int(values.argmax())

    def _augment(self, start: int) -> None:
        """Find the cheapest chain of moves that ends at a free column, and make it."""
        count = self.num_held
        held, price = self.held[:count], self.price[:count]
        distance = np.full(count, np.inf)  # of slots to visit; those that were visited have -inf ...
        to_visit = distance.copy()  # ... and inf here, where the nearest is looked for
        came_from = np.empty(count, dtype=np.int64)
        visited: list[tuple[int, float]] = []  # (slot, distance) in the order of visits
        end_distance, end_column, end_row = np.inf, -1, -1

        row, traveled = start, 0.0
        while True:
            costs = np.subtract(traveled - self.row_dual[row], self.quality[row].take(held), dtype=np.float64)
            costs -= price
            better = costs < distance
            np.copyto(distance, costs, where=better)
            np.copyto(to_visit, costs, where=better)
            np.copyto(came_from, row, where=better)
            column = self._free_column(row)
            cost = traveled - self.row_dual[row] - float(self.quality[row, column])
            if cost < end_distance or (cost == end_distance and column < end_column):
                end_distance, end_column, end_row = cost, column, row
            slot = int(to_visit.argmin())
            nearest = float(to_visit[slot])
            if end_distance <= nearest:  # also if all were visited
                break
            distance[slot], to_visit[slot] = -np.inf, np.inf
            traveled, row = nearest, self.holder[slot]
            visited.append((slot, nearest))

        self.row_dual[start] = end_distance
        for slot, reached in visited:
            self.row_dual[self.holder[slot]] += end_distance - reached
            self.price[slot] -= end_distance - reached

        # The last row of the chain takes the free column, the one before it the column left, and so on.
        row, left = end_row, self.slot_of_row[end_row]
        self._take(row, end_column)
        while row != start:
            row, slot = int(came_from[left]), left
            left = self.slot_of_row[row]
            self.holder[slot] = row
            self.slot_of_row[row] = slot
