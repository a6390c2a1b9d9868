"""Where tiles lie."""

from __future__ import annotations

from itertools import pairwise

from d2_ext.inference.tiles import make_tiles

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.integers(1, 120), overlap=st.floats(0.0, 0.9))
def test_tiles_cover_the_image_with_at_least_the_overlap(height: int, width: int, size: int, overlap: float) -> None:
    if size * (1 - overlap) < 3:
        overlap = 0.0  # a hundred thousand tiles would prove no more
    tiles = make_tiles(height, width, size, overlap)
    seen = np.zeros((height, width), dtype=bool)
    for tile in tiles:
        x0, y0, x1, y1 = tile.box
        assert (x1 - x0, y1 - y0) == (min(size, width), min(size, height))
        assert tile.inner == (x0 > 0, y0 > 0, x1 < width, y1 < height)
        seen[y0:y1, x0:x1] = True
    assert seen.all()
    columns = sorted({tile.box[0] for tile in tiles})
    shared = [first + size - second for first, second in pairwise(columns)]
    assert all(s >= overlap * size - 1 for s in shared)  # 1: starts are rounded


def test_an_image_of_4000_px_at_1024_with_a_fifth_shared_takes_five_tiles_a_row() -> None:
    tiles = make_tiles(1024, 4000, 1024, 0.2)
    assert [tile.box[0] for tile in tiles] == [0, 744, 1488, 2232, 2976]  # (4000 - 1024) / 4 = 744
