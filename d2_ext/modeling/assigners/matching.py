"""Exact assignment of few rows to many columns, fast where most rows can have the column they like best.

The algorithm is that of shortest augmenting paths with dual prices (Jonker and Volgenant 1987, in the rectangular form
of Crouse 2016, which SciPy uses too), evaluated lazily: a column that nobody holds has price zero, so of all free
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
    """State of one matching: who holds which column at which price."""

    def __init__(self, quality: np.ndarray) -> None:
        num_rows = len(quality)
        self.quality = quality
        self.held = np.empty(num_rows, dtype=np.int64)  # columns in the order they were first taken
        self.holder = np.empty(num_rows, dtype=np.int64)  # row that holds self.held[i]
        self.price = np.zeros(num_rows)  # dual of self.held[i], at most 0
        self.num_held = 0
        self.slot_of_column: dict[int, int] = {}  # column -> i
        self.slot_of_row = np.full(num_rows, -1)  # row -> i
        self.row_dual = np.zeros(num_rows)
        self.shortlists: dict[int, list[int]] = {}  # row -> its next best columns, best last

    def solve(self) -> np.ndarray:
        """Serve the rows in order; later rows may push earlier ones to other columns."""
        if self.quality.size == 0:
            return np.empty(len(self.quality), dtype=np.int64)
        favourites = self.quality.argmax(axis=1).tolist()  # the first of equal ones
        for row, column in enumerate(favourites):
            if column in self.slot_of_column:
                self._augment(row)
            else:
                self.row_dual[row] = -float(self.quality[row, column])
                self._take(row, column)
        return self.held[self.slot_of_row]

    def _take(self, row: int, column: int) -> None:
        slot = self.num_held
        self.held[slot], self.holder[slot] = column, row
        self.slot_of_column[column] = slot
        self.slot_of_row[row] = slot
        self.num_held += 1

    def _free_column(self, row: int) -> int:
        """The row's best column that nobody holds, the first of equal ones."""
        if row not in self.shortlists:
            self.shortlists[row] = self._shortlist(row)
        shortlist = self.shortlists[row]
        while shortlist and shortlist[-1] in self.slot_of_column:  # a column that was taken is never free again
            shortlist.pop()
        if shortlist:
            return shortlist[-1]
        values = self.quality[row].copy()
        values[self.held[: self.num_held]] = -np.inf
        return int(values.argmax())

    def _shortlist(self, row: int) -> list[int]:
        """The columns above the best of a sample, worst first: all of the best few, without sorting the whole row."""
        values = self.quality[row]
        best = np.flatnonzero(values > values[::SAMPLE_STEP].max())
        return best[np.argsort(-values[best], kind="stable")][::-1].tolist()

    def _augment(self, start: int) -> None:
        """Find the cheapest chain of moves that ends at a free column, and make it."""
        count = self.num_held
        held, price = self.held[:count], self.price[:count]
        distance = np.full(count, np.inf)
        came_from = np.empty(count, dtype=np.int64)
        is_open = np.ones(count, dtype=bool)
        visited: list[tuple[int, float]] = []  # (slot, distance) in the order of visits
        end_distance, end_column, end_row = np.inf, -1, -1

        row, travelled = start, 0.0
        while True:
            costs = travelled - self.quality[row, held].astype(np.float64) - self.row_dual[row] - price
            better = is_open & (costs < distance)
            distance[better], came_from[better] = costs[better], row
            column = self._free_column(row)
            cost = travelled - float(self.quality[row, column]) - self.row_dual[row]
            if cost < end_distance or (cost == end_distance and column < end_column):
                end_distance, end_column, end_row = cost, column, row
            slot = int(np.where(is_open, distance, np.inf).argmin())
            if not is_open[slot] or end_distance <= distance[slot]:
                break
            is_open[slot], travelled, row = False, float(distance[slot]), int(self.holder[slot])
            visited.append((slot, travelled))

        self.row_dual[start] += end_distance
        for slot, reached in visited:
            self.row_dual[self.holder[slot]] += end_distance - reached
            self.price[slot] -= end_distance - reached
        self._move_along(start, end_row, end_column, came_from)

    def _move_along(self, start: int, end_row: int, end_column: int, came_from: np.ndarray) -> None:
        """Let the last row of the chain take the free column, the one before it the column left, and so on."""
        row, left = end_row, int(self.slot_of_row[end_row])
        self._take(row, end_column)
        while row != start:
            row, slot = int(came_from[left]), left
            left = int(self.slot_of_row[row])
            self.holder[slot] = row
            self.slot_of_row[row] = slot
