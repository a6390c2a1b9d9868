"""Losses over the test set: those of the model in training mode, without a trace in it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from d2_ext.config.load import load_config
from d2_ext.data.loader import build_validation_mapper
from d2_ext.data.randomness import VALIDATION, seed_generators
from d2_ext.engine.trainer import Trainer
from d2_ext.engine.validation_loss import validation_loss
from d2_ext.errors import ConfigError, DatasetError

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage

from helpers.scripts import QUICKSTART
from helpers.small_runs import IMAGES, OPTIONS, differences, fresh_data

DETECTORS: dict[str, list[Any]] = {
    "RetinaNetCEASC": [],
    "IgnoreAwareRetinaNet": ["MODEL.META_ARCHITECTURE", "IgnoreAwareRetinaNet"],
    "FCOS": [
        *("MODEL.META_ARCHITECTURE", "FCOS", "MODEL.FCOS.NUM_CLASSES", 2),
        *("MODEL.FCOS.IN_FEATURES", "['p2','p3','p4','p5','p6']", "MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg"),
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_data(tmp_path_factory.mktemp("validation") / "data")


def _cfg(*options: Any) -> CfgNode:
    """Of the small runs, with batch norms whose statistics training moves."""
    given = {**OPTIONS, "MODEL.DEVICE": "cpu", "MODEL.RESNETS.NORM": "BN", "DATALOADER.NUM_WORKERS": 0}
    given |= dict(zip(options[::2], options[1::2]))
    return load_config(QUICKSTART, [str(word) for pair in given.items() for word in pair])


@pytest.mark.parametrize("detector", DETECTORS)
def test_it_is_the_mean_of_the_training_losses_image_by_image(data: Path, detector: str) -> None:
    cfg = _cfg(*DETECTORS[detector])
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    mapper, sums = build_validation_mapper(cfg), {}
    with EventStorage(), torch.no_grad():
        for record in DatasetCatalog.get("small_images"):
            alone = copy.deepcopy(model).train()  # each image meets the model as it is
            for module in alone.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
                if hasattr(module, "momentum") and hasattr(module, "value"):
                    module.eval()
            seed_generators(0, VALIDATION)
            for name, value in alone([mapper(record)]).items():
                sums[name] = sums.get(name, 0.0) + float(value)
    found = validation_loss(cfg, model)
    assert found == pytest.approx({"total": sum(sums.values()) / IMAGES, **{k: v / IMAGES for k, v in sums.items()}})
    assert {"loss_cls", "loss_box_reg"} <= found.keys()


@pytest.mark.parametrize("detector", DETECTORS)
def test_it_leaves_no_trace(data: Path, detector: str) -> None:
    cfg = _cfg(*DETECTORS[detector])
    model = Trainer.build_model(cfg).train()
    model.backbone.eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    drawn = torch.get_rng_state()
    first = validation_loss(cfg, model)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert validation_loss(cfg, model) == first
    assert differences(before, model.state_dict()) == []
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not hasattr(model, "loss_normalizer")


def test_test_sets_without_annotations_and_tiles_are_refused(data: Path, tmp_path: Path) -> None:
    record = {k: v for k, v in DatasetCatalog.get("small_images")[0].items() if k != "annotations"}
    DatasetCatalog.register("no_annotations", lambda: [record])
    try:
        cfg = _cfg("DATASETS.TEST", "('no_annotations',)")
        with pytest.raises(DatasetError, match=r"TEST.VAL_LOSS needs annotations, but .*png of the data set"):
            validation_loss(cfg, Trainer.build_model(cfg))
    finally:
        DatasetCatalog.remove("no_annotations")
    with pytest.raises(ConfigError, match=r"TEST.VAL_LOSS looks at whole images, but TEST.TILE.SIZE 64"):
        _cfg("TEST.VAL_LOSS", True, "TEST.TILE.SIZE", 64)
    with pytest.raises(ConfigError, match=r"'val_loss/total', which is there with TEST.VAL_LOSS True only"):
        _cfg("TEST.BEST.METRIC", "val_loss/total")
