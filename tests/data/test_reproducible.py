"""The training loader: Detectron2's order, the same for any workers and processes, from any batch on."""

from __future__ import annotations

import itertools
from typing import Any

import d2_ext
from d2_ext.data.randomness import generators_preserved, seed_generators
from d2_ext.data.reproducible import SamplesByPosition, TrainLoader, reproducible_loader
from d2_ext.errors import DatasetError

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader

RECORDS = [{"number": n, "width": 4 + n % 3, "height": 5, "annotations": []} for n in range(10)]


def _mapper(record: dict[str, Any]) -> dict[str, Any]:
    drawn = (int(torch.randint(1000, ())), int(np.random.randint(1000)))
    return {**record, "drawn": drawn}


def _cfg(workers: int = 0, *, grouping: bool = True, batch: int = 2) -> CfgNode:
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH = 3, batch
    cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.ASPECT_RATIO_GROUPING = workers, grouping
    return cfg


def _take(loader: Any, count: int) -> list[list[tuple]]:
    return [[(s["number"], s.get("drawn")) for s in batch] for batch in itertools.islice(loader, count)]


@pytest.mark.parametrize("grouping", [True, False])
def test_the_order_is_that_of_detectron2(grouping: bool) -> None:
    cfg = _cfg(grouping=grouping)
    theirs = build_detection_train_loader(cfg, mapper=dict, dataset=RECORDS)
    assert _take(reproducible_loader(cfg, dict, RECORDS), 12) == _take(theirs, 12)


def test_workers_change_nothing_and_neither_does_what_the_main_process_draws() -> None:
    expected = _take(reproducible_loader(_cfg(), _mapper, RECORDS), 9)
    torch.rand(5)
    assert _take(reproducible_loader(_cfg(2), _mapper, RECORDS), 9) == expected


def test_loading_draws_nothing_from_the_generators_of_the_main_process() -> None:
    batches = iter(reproducible_loader(_cfg(), _mapper, RECORDS))
    torch.manual_seed(1)
    next(batches)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)


def test_a_loader_starts_at_any_batch() -> None:
    loader = reproducible_loader(_cfg(), _mapper, RECORDS)
    expected = _take(loader, 9)
    assert isinstance(loader, TrainLoader)
    loader.start_at(4, 3)
    assert _take(loader, 5) == expected[4:]


def test_another_seed_draws_other_numbers_for_the_same_order() -> None:
    loader = reproducible_loader(_cfg(), _mapper, RECORDS)
    first = _take(loader, 5)
    loader.start_at(0, 4)
    second = _take(loader, 5)
    assert [[n for n, _ in batch] for batch in first] == [[n for n, _ in batch] for batch in second]
    assert first != second


def test_two_processes_share_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _take(reproducible_loader(_cfg(grouping=False, batch=4), _mapper, RECORDS), 5)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        shares.append(_take(reproducible_loader(_cfg(grouping=False, batch=4), _mapper, RECORDS), 5))
    for batch, first, second in zip(whole, *shares):
        assert sorted(batch) == sorted(first + second)


def test_another_record_takes_the_place_of_one_that_cannot_be_used() -> None:
    samples = SamplesByPosition(RECORDS, lambda r: r if r["number"] % 2 else None, 0)
    found = [samples[position, 2]["number"] for position in range(20)]
    assert set(found) <= {1, 3, 5, 7, 9}
    assert len(set(found)) > 1
    assert found == [samples[position, 2]["number"] for position in range(20)]


def test_a_mapper_that_can_use_nothing_is_an_error() -> None:
    with pytest.raises(DatasetError, match="returned None for record 2 and for 100 others"):
        SamplesByPosition(RECORDS, lambda record: None, 0)[0, 2]


def test_a_batch_that_processes_cannot_share_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(DatasetError, match=r"SOLVER\.IMS_PER_BATCH 3 cannot be shared by 2"):
        reproducible_loader(_cfg(batch=3), dict, RECORDS)


def test_keys_give_streams_of_their_own() -> None:
    drawn = []
    with generators_preserved():
        for key in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1)):
            seed_generators(*key)
            drawn.append((float(torch.rand(())), float(np.random.rand())))
    assert drawn[0] == drawn[3]
    assert len(set(drawn)) == 3
