"""The default predictor: what the model is given, and what comes back; on either implementation of Detectron2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn


@META_ARCH_REGISTRY.register()
class ContractEcho(nn.Module):
    """Returns its input, and its only weight."""

    @configurable
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {}

    def forward(self, batch: list[dict]) -> list[dict]:
        assert not self.training
        assert not torch.is_grad_enabled()
        return [{**record, "weight": self.weight.item()} for record in batch]


def _cfg(weights: str = "") -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = "cpu", "ContractEcho", weights
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 20, 30
    return cfg


def _picture(height: int, width: int) -> np.ndarray:
    """Blue 10, green 20, red 30."""
    return np.broadcast_to(np.array([10, 20, 30], dtype=np.uint8), (height, width, 3)).copy()


def test_the_image_is_resized_as_uint8_unless_the_size_is_zero_and_becomes_float() -> None:
    out = DefaultPredictor(_cfg())(_picture(40, 50))
    assert (out["height"], out["width"]) == (40, 50)
    assert out["image"].shape == (3, 20, 25)
    assert out["image"].dtype == torch.float32
    assert out["image"][:, 0, 0].tolist() == [10.0, 20.0, 30.0]
    assert DefaultPredictor(_cfg())(_picture(10, 100))["image"].shape == (3, 3, 30)  # the longer edge is limited
    cfg = _cfg()
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert DefaultPredictor(cfg)(_picture(7, 9))["image"].shape == (3, 7, 9)


def test_a_model_for_rgb_gets_the_channels_reversed() -> None:
    cfg = _cfg()
    cfg.INPUT.FORMAT = "RGB"
    out = DefaultPredictor(cfg)(_picture(20, 20))
    assert out["image"][:, 0, 0].tolist() == [30.0, 20.0, 10.0]
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(AssertionError, match="L"):
        DefaultPredictor(cfg)


def test_weights_and_metadata_come_from_the_config(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.tensor([2.5])}}, tmp_path / "w.pth")
    cfg = _cfg(str(tmp_path / "w.pth"))
    cfg.DATASETS.TEST = ("contract_predictor",)
    predictor = DefaultPredictor(cfg)
    assert predictor(_picture(20, 20))["weight"] == 2.5
    assert predictor.metadata is MetadataCatalog.get("contract_predictor")
    assert predictor.cfg is not cfg
    assert not hasattr(DefaultPredictor(_cfg()), "metadata")
