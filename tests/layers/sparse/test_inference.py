"""Sparse inference computes what the dense definition does, whatever the maps, masks and dtypes."""

from __future__ import annotations

from d2_ext.layers.sparse import context_norm, rows
from d2_ext.layers.sparse import inference as sparse_inference
from d2_ext.layers.sparse import work as sparse_work
from d2_ext.layers.sparse.gumbel import Mask
from d2_ext.layers.sparse.tower import ContextSparseTower, SparseTowerConfig, TowerOutput

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

CHANNELS = 8
NORMS = st.sampled_from(["CE-GN", "LN"])
SHAPES = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)
SHARES = st.sampled_from([0.0, 0.1, 0.5, 0.97, 1.0])
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.03}


def tower(num_layers: int = 3, dtype: torch.dtype = torch.float32, norm: str = "CE-GN") -> ContextSparseTower:
    config = SparseTowerConfig(norm=norm, norm_groups=4)
    built = ContextSparseTower(
        channels=CHANNELS, num_layers=num_layers, outputs={"a": 6, "b": 2}, bases={"a": -8.0}, config=config
    )
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return built.eval().to(dtype)


def use_tiles(patch: pytest.MonkeyPatch, cost: float | None, chunk: int = 3) -> None:
    """Let tiles of small maps with few channels count as rich if they hold more than ``cost`` positions."""
    patch.setattr(sparse_work, "TILE_COST", {} if cost is None else {CHANNELS: cost})
    patch.setattr(sparse_work, "KERNEL_COST", 0)
    patch.setattr(sparse_work, "CHUNK_TILES", chunk)


def draw(shapes: list[tuple[int, int, int]], shares: list[float]) -> tuple[list[Tensor], list[Tensor]]:
    """Maps with a mean far from 0, and masks of the given shares."""
    maps = [torch.randn(n, CHANNELS, h, w) + 2 for n, h, w in shapes]
    masks = [(torch.rand(n, 1, h, w) < s).float() for (n, h, w), s in zip(shapes, shares)]
    return maps, masks


def both_ways(
    built: ContextSparseTower, maps: list[Tensor], masks: list[Tensor], needed: list[Tensor] | None = None
) -> tuple[TowerOutput, TowerOutput]:
    """Results of sparse inference and of the definition."""
    given = [Mask(m) for m in masks]
    wanted = None if needed is None else [Mask(m) for m in needed]
    return built(maps, given, wanted), built.forward_dense(maps, given)


def assert_equal_where(wanted: list[Tensor], sparse: list[Tensor], dense: list[Tensor], tolerance: float) -> None:
    for where, a, b in zip(wanted, sparse, dense):
        assert a.shape == b.shape
        error = ((a - b) * where).abs().max()
        assert error <= tolerance * (1 + b.abs().max()), error.item()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    shapes=SHAPES,
    shares=st.lists(SHARES, min_size=4, max_size=4),
    dtype=st.sampled_from(list(TOLERANCE)),
    channels_last=st.booleans(),
    chunk=st.sampled_from([1, 3, 64]),
    limit=st.sampled_from([0.4, 0.9, 1.0]),
    tile_cost=st.sampled_from([0.5, 2.2, 3.5, None]),
    alone=st.sampled_from([0, 20, 4096]),
    norm=NORMS,
)
def test_any_maps_masks_and_dtypes_give_what_the_definition_gives(
    seed: int,
    shapes: list[tuple[int, int, int]],
    shares: list[float],
    dtype: torch.dtype,
    channels_last: bool,
    chunk: int,
    limit: float,
    tile_cost: float | None,
    alone: int,
    norm: str,
) -> None:
    torch.manual_seed(seed)
    built = tower(dtype=dtype, norm=norm)
    maps, masks = draw(shapes, shares)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = [x.to(dtype).contiguous(memory_format=layout) for x in maps]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(rows.CHUNK_NUMBERS, "cpu", chunk * CHANNELS)
        patch.setattr(context_norm, "MOMENT_ROWS", chunk)
        patch.setattr(sparse_inference, "CPU_DENSE_SHARE", {0: limit})
        patch.setattr(sparse_inference, "ALONE_NUMBERS", alone * CHANNELS)
        use_tiles(patch, tile_cost, chunk)
        sparse, dense = both_ways(built, maps, masks)
    for name in ("a", "b"):
        everywhere = [torch.ones_like(m) for m in masks]
        found, expected = (out.predictions[name].maps() for out in (sparse, dense))
        assert_equal_where(everywhere, [x.double() for x in found], [x.double() for x in expected], TOLERANCE[dtype])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    shapes=SHAPES,
    share=SHARES,
    needed_share=SHARES,
    layers=st.integers(1, 5),
    tile_cost=st.sampled_from([0.5, 2.2, None]),
    norm=NORMS,
)
def test_what_is_needed_does_not_change_when_the_rest_is_left_out(
    seed: int,
    shapes: list[tuple[int, int, int]],
    share: float,
    needed_share: float,
    layers: int,
    tile_cost: float | None,
    norm: str,
) -> None:
    torch.manual_seed(seed)
    built = tower(layers, norm=norm)
    maps, masks = draw(shapes, [share] * 4)
    needed = draw(shapes, [needed_share] * 4)[1]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        use_tiles(patch, tile_cost)
        sparse, dense = both_ways(built, maps, masks, needed)
    for name in ("a", "b"):
        found, expected = (out.predictions[name].maps() for out in (sparse, dense))
        assert_equal_where(needed, found, expected, 1e-4)


def test_each_layer_computes_only_what_the_next_one_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    inner = sparse_work.Work.convolved

    def counting(work: sparse_work.Work, *args: object) -> object:
        counts.append(len(work.index))
        return inner(work, *args)

    monkeypatch.setattr(sparse_work.Work, "convolved", counting)
    mask = torch.zeros(1, 1, 9, 20)
    mask[:, :, 4] = 1  # one row of 20 active positions
    needed = torch.zeros(1, 1, 9, 20)
    needed[:, :, :, 10] = 1  # crosses it at one position
    out = tower(3)([torch.randn(1, CHANNELS, 9, 20)], [Mask(mask)], [Mask(needed)])
    assert counts == [7, 5, 3]  # the prediction reads 3 of them, those 5, those 7
    assert out.predictions["a"].index.tolist() == [4 * 20 + 10]


def test_a_single_image_of_a_batch_may_be_empty() -> None:
    maps, masks = draw([(3, 6, 7), (3, 3, 4)], [0.4, 0.4])
    for mask in masks:
        mask[1] = 0
    built = tower()
    with torch.no_grad():
        sparse, dense = both_ways(built, maps, masks)
    assert_equal_where([torch.ones(1)] * 2, sparse.predictions["a"].maps(), dense.predictions["a"].maps(), 1e-4)
    assert (sparse.predictions["a"].maps()[0][1] == -8).all()


def test_nearly_full_maps_are_computed_densely_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    dense: list[tuple[int, ...]] = []
    inner = sparse_inference.predict_full_map

    def noting(weights: object, x: Tensor, *rest: object) -> object:
        dense.append(tuple(x.shape[2:]))
        return inner(weights, x, *rest)

    monkeypatch.setattr(sparse_inference, "predict_full_map", noting)
    monkeypatch.setattr(sparse_inference, "CPU_DENSE_SHARE", {0: 0.8})
    maps, masks = draw([(1, 6, 7), (1, 4, 5), (1, 3, 3)], [1.0, 0.2, 1.0])
    tower()(maps, [Mask(m) for m in masks])
    assert dense == [(6, 7), (3, 3)]


def test_where_tiles_pay_a_full_map_consists_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles(monkeypatch, 2.2)
    works: list[sparse_work.Work] = []
    inner = sparse_work.Work.of.__func__

    def noting(cls: type, *args: object) -> object:
        works.append(inner(cls, *args))
        return works[-1]

    monkeypatch.setattr(sparse_work.Work, "of", classmethod(noting))
    maps, masks = draw([(1, 6, 8)], [1.0])
    built = tower()
    with torch.no_grad():
        sparse, dense = both_ways(built, maps, masks)
    assert [job.outputs is not None for work in works for job in work.jobs] == [True] * 4  # 12 tiles, 3 a job
    assert_equal_where([torch.ones(1)], sparse.predictions["a"].maps(), dense.predictions["a"].maps(), 1e-4)


def test_the_features_given_stay_as_they_are() -> None:
    maps, masks = draw([(2, 6, 7), (1, 2, 2)], [0.4, 1.0])
    maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    before = [x.clone() for x in maps]
    tower()(maps, [Mask(m) for m in masks])
    assert all(torch.equal(a, b) for a, b in zip(maps, before))


def test_the_context_map_is_made_in_products_of_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, inner = set(), sparse_inference.row_linear

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sizes.add(len(x))
        return inner(x, weight, bias)

    monkeypatch.setattr(sparse_inference, "row_linear", product)
    monkeypatch.setattr(sparse_inference, "CONTEXT_ROWS", 64)
    built = tower()
    for number in range(10):
        torch.manual_seed(number)
        maps, masks = draw([(1, 20, 20)], [0.05])
        with torch.no_grad():
            built(maps, [Mask(mask) for mask in masks])
    assert sizes <= {32, 64}


@pytest.mark.parametrize(("channels", "share"), [(32, 0.5), (127, 0.5), (128, 0.75)])
def test_from_which_share_on_a_map_is_computed_densely(channels: int, share: float) -> None:
    assert sparse_inference.dense_share(torch.zeros(1, channels, 2, 2)) == share
