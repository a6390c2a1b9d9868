"""Which positions are computed as tiles, which one by one, and in which order."""

from __future__ import annotations

from d2_ext.layers.sparse import conv as sparse_conv
from d2_ext.layers.sparse import winograd
from d2_ext.layers.sparse import work as sparse_work
from d2_ext.layers.sparse.rows import RowLayout, TableRows
from d2_ext.layers.sparse.work import Work, cost_of_a_tile

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

# One image of 4 x 5. The tile of rows 0 and 1, columns 2 and 3 holds three positions, others one.
#   . . x x .
#   x . x . .
#   . . . . x
#   . . . . .
INDEX = torch.tensor([2, 3, 5, 7, 14])
LAYOUT = RowLayout(((1, 4, 5),))


@pytest.fixture(autouse=True)
def _small_things_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_work, "KERNEL_COST", 0)


def test_rich_tiles_are_computed_first_tile_by_tile() -> None:
    work = Work.of(LAYOUT, INDEX, 256, 2.3)
    assert work.index.tolist() == [2, 3, 7, 5, 14]
    tiles, single = sorted(work.jobs, key=lambda job: job.part.start)
    outside = LAYOUT.num_rows
    window = [outside] * 4 + [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14]
    assert tiles.numbers.tolist() == [window] * 32  # an even number of tiles
    assert tiles.outputs.tolist() == [0, 32, 64]  # above left, above right, below left of the first
    assert single.outputs is None
    assert single.numbers[0].tolist() == [outside, 0, 1, outside, 5, 6, outside, 10, 11]


def test_jobs_know_what_they_read_and_compute() -> None:
    jobs = Work.of(LAYOUT, INDEX, 256, 2.3).jobs
    assert [(job.lowest, job.highest) for job in jobs] == [(0, 14), (1, 7)]  # by the lowest row that is read


@pytest.mark.parametrize("cost", [None, 3.0], ids=["no tiles", "three positions do not pay"])
def test_without_rich_tiles_all_are_single_and_in_order(cost: float | None) -> None:
    work = Work.of(LAYOUT, INDEX, 256, cost)
    assert work.index.tolist() == INDEX.tolist()
    assert not work.has_tiles


def test_tiles_must_be_worth_their_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    full = torch.arange(LAYOUT.num_rows)  # 4 tiles of 4 positions, 2 of 2
    monkeypatch.setattr(sparse_work, "KERNEL_COST", 3.9)
    assert Work.of(LAYOUT, full, 256, 3.0).has_tiles  # they save one each
    monkeypatch.setattr(sparse_work, "KERNEL_COST", 4.1)
    assert not Work.of(LAYOUT, full, 256, 3.0).has_tiles


def test_only_what_is_read_is_named() -> None:
    work = Work.of(RowLayout(((1, 5, 6), (1, 2, 2))), torch.tensor([7, 33]), 256, None)
    assert work.rows_read(34).tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14, 30, 31, 32, 33]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shapes=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3),
    share=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    cost=st.sampled_from([None, 0.5, 2.3]),
    chunk=st.sampled_from([1, 4, 50]),
)
def test_any_work_gives_what_the_convolution_gives(
    seed: int, shapes: list[tuple[int, int, int]], share: float, cost: float | None, chunk: int
) -> None:
    torch.manual_seed(seed)
    layout, conv = RowLayout(tuple(shapes)), nn.Conv2d(6, 4, 3, padding=1)
    maps = [torch.randn(n, 6, h, w) for n, h, w in shapes]
    index = (torch.rand(layout.num_rows) < share).nonzero().squeeze(1)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_work, "CHUNK_TILES", chunk)
        work = Work.of(layout, index, chunk, cost)
        table = F.pad(layout.flatten(maps), (0, 0, 0, 1))
        source = TableRows(table, work.capacity)
        found = torch.full((len(index), 4), torch.nan)
        for job, y in work.convolved(source, conv):
            found[job.part] = y
        expected = layout.flatten([conv(x) for x in maps])[work.index]
    assert work.index.sort().values.tolist() == index.tolist()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_tiles_are_for_many_channels_in_float32_without_gradient() -> None:
    few, many, most = (torch.empty(1, channels, 1, 1) for channels in (128, 256, 1024))
    assert cost_of_a_tile(many) is None  # gradients are on
    with torch.no_grad():
        if torch.backends.cpu.get_cpu_capability().startswith("AVX"):
            assert cost_of_a_tile(many) == sparse_work.TILE_COST[256]
            assert cost_of_a_tile(most) == sparse_work.TILE_COST[512]
        assert cost_of_a_tile(few) is None
        assert cost_of_a_tile(many.bfloat16()) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert cost_of_a_tile(many) is None


def test_the_capacity_serves_a_part_of_the_positions_too() -> None:
    work = Work.of(RowLayout(((1, 2, 2),)), torch.arange(4), 256, 2.3)
    assert [job.numbers.numel() for job in work.jobs] == [32 * 16]
    part = Work.of(RowLayout(((1, 2, 2),)), torch.arange(2), 256, 2.3)  # no rich tile any more
    assert [job.numbers.numel() for job in part.jobs] == [32 * 9]
    nine = torch.tensor([0, 1, 4, 5, 8, 9, 12, 13, 16])
    few_tiles, singles = (
        Work.of(RowLayout(((1, 9, 4),)), nine, 256, 1.5),
        Work.of(RowLayout(((1, 9, 4),)), nine, 256, None),
    )
    assert singles.capacity == 32 * 9
    assert few_tiles.capacity >= singles.capacity


@pytest.mark.parametrize("cost", [None, 2.3], ids=["one by one", "tiles"])
def test_products_of_any_number_of_positions_have_few_numbers_of_rows(
    cost: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, conv, rows = RowLayout(((1, 12, 12),)), nn.Conv2d(4, 4, 3, padding=1), set()
    table = torch.randn(layout.num_rows + 1, 4)

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        rows.add(len(x))
        return F.linear(x, weight, bias)

    for module in (sparse_work, sparse_conv, winograd):
        monkeypatch.setattr(module, "row_linear", product)
    for count in (*range(1, 41), 79, 80, 81, 100):
        index = torch.randperm(layout.num_rows)[:count].sort().values
        work = Work.of(layout, index, 256, cost)
        with torch.no_grad():
            assert sum(len(y) for _, y in work.convolved(TableRows(table, work.capacity), conv)) == count
            assert len(sparse_conv.gather_conv(table, layout.neighbors(index), conv.weight, conv.bias)) == count
    assert rows <= {32, 64, 96, 128}
