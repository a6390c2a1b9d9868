"""Row tables of several maps."""

from __future__ import annotations

from d2_ext.layers.sparse.rows import RowLayout, RowValues

import pytest
import torch
from torch import Tensor

SHAPES = [(2, 4, 5), (2, 2, 3), (3, 1, 1)]


@pytest.fixture
def maps() -> list[Tensor]:
    return [torch.randn(n, 6, h, w) for n, h, w in SHAPES]


def test_a_table_holds_every_position_and_turns_back_into_its_maps(maps: list[Tensor]) -> None:
    layout = RowLayout.of(maps)
    rows = layout.flatten(maps)
    assert rows.shape == (2 * 20 + 2 * 6 + 3, 6)
    # second image of the second map, row 1, column 2: after 40 rows and 6 more, 1 * 3 + 2
    assert torch.equal(rows[40 + 6 + 5], maps[1][1, :, 1, 2])
    for back, original in zip(layout.maps(rows), maps):
        assert torch.equal(back, original)


def test_values_by_image_have_the_levels_side_by_side(maps: list[Tensor]) -> None:
    of_two = RowValues.of_maps(maps[:2])
    by_image = of_two.per_image()
    assert by_image.shape == (2, 26, 6)
    assert torch.equal(by_image[1, 20 + 5], maps[1][1, :, 1, 2])
    sparse = RowValues(of_two.values[[3, 41]], torch.tensor([3, 41]), -8.0, of_two.layout)
    assert sparse.per_image()[0, 21, 0] == of_two.values[41, 0]
    assert int((sparse.per_image() == -8).sum()) == 50 * 6


def test_rows_know_their_map() -> None:
    layout = RowLayout(tuple(SHAPES))
    device = torch.device("cpu")
    assert layout.map_of(torch.tensor([0, 39, 40, 51, 54]), device).tolist() == [0, 0, 1, 1, 2]
    assert layout.map_of(None, device).bincount().tolist() == [40, 12, 3]


def test_neighbors_are_those_that_a_padded_3x3_kernel_sees(maps: list[Tensor]) -> None:
    layout = RowLayout.of(maps)
    index = torch.arange(layout.num_rows)
    table = torch.cat([layout.flatten(maps), torch.zeros(1, 6)])
    seen = table[layout.neighbors(index)]  # (R, 9, C)
    unfolded = [torch.nn.functional.unfold(m, 3, padding=1).view(len(m), 6, 9, -1) for m in maps]  # (N, C, 9, HW)
    expected = torch.cat([u.permute(0, 3, 2, 1).reshape(-1, 9, 6) for u in unfolded])
    assert torch.equal(seen, expected)


def test_segments_count_images_map_after_map() -> None:
    layout = RowLayout(tuple(SHAPES))
    segments = layout.segment_of(torch.tensor([0, 19, 20, 39, 40, 46, 51, 52, 53, 54]))
    assert segments.tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 5, 6]


def test_values_at_some_rows_are_the_base_elsewhere() -> None:
    layout = RowLayout(tuple(SHAPES))
    values = RowValues(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([41, 54]), -8.0, layout)
    assert values.at(torch.tensor([54, 0, 41])).tolist() == [[3.0, 4.0], [-8.0, -8.0], [1.0, 2.0]]
    dense = values.dense()
    assert dense[54].tolist() == [3.0, 4.0]
    assert int((dense == -8).sum()) == 2 * (layout.num_rows - 2)
    assert values.maps()[1][0, :, 0, 1].tolist() == [1.0, 2.0]


def test_values_by_segment_are_the_same_for_sparse_and_full_tables() -> None:
    layout = RowLayout(tuple(SHAPES))
    full = RowValues(torch.randn(layout.num_rows, 3), None, 0.0, layout)
    index = torch.tensor([1, 25, 26, 45, 54])
    some = RowValues(full.values[index], index, 0.0, layout)
    sparse = some.per_segment()
    assert [p.tolist() for p, _ in sparse] == [[1], [5, 6], [5], [], [], [], [0]]
    for (positions, values), (_, all_values) in zip(sparse, full.per_segment()):
        assert torch.equal(values, all_values[positions])


def test_tiles_begin_at_even_rows_and_columns_of_each_image() -> None:
    layout = RowLayout(((2, 3, 3), (1, 1, 2)))
    corners, slots = layout.tiles(torch.tensor([0, 4, 5, 8, 9, 13, 19]))
    assert corners.tolist() == [0, 0, 2, 8, 9, 9, 18]
    assert slots.tolist() == [0, 3, 2, 0, 0, 3, 1]


def test_a_window_begins_one_position_before_its_tile() -> None:
    layout = RowLayout(((1, 3, 4),))
    assert layout.neighbors(torch.tensor([0]), range(-1, 3)).tolist() == [
        [12, 12, 12, 12, 12, 0, 1, 2, 12, 4, 5, 6, 12, 8, 9, 10]
    ]
