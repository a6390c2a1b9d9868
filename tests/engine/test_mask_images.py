"""Images of masks in the event storage while a sparse head is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import d2_ext
from d2_ext.engine.hooks import MaskImages

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from torch import nn

NAME = "one_image_for_masks"


class Halved(nn.Module):
    """Active in the left half of an image on its only level, in evaluation mode only."""

    def activation_masks(self, inputs: list[dict]) -> list[dict[str, dict[str, torch.Tensor]]]:
        height, width = (side // 8 for side in inputs[0]["image"].shape[-2:])
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[:, : width // 2] = not self.training
        return [{"p3": {"cls": mask, "reg": ~mask}}]


@pytest.fixture
def cfg(tmp_path: Path) -> object:
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.full((64, 96, 3), 100, np.uint8))
    record = {"file_name": str(file), "image_id": 0, "height": 64, "width": 96, "annotations": []}
    DatasetCatalog.register(NAME, lambda: [record])
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST, cfg.DATASETS.TEST, cfg.TEST.MASK_PERIOD = 64, (NAME,), 2
    yield cfg
    DatasetCatalog.remove(NAME)


def run(cfg: object, model: nn.Module, iterations: int) -> list[tuple[str, np.ndarray, int]]:
    hook = MaskImages(cfg)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(model=model, storage=storage, max_iter=iterations, iter=0)
        hook.before_train()
        for iteration in range(iterations):
            hook.trainer.iter = storage.iter = iteration
            hook.after_step()
        return list(storage._vis_data)


def test_the_masks_of_inference_are_kept_every_period_and_at_the_end(cfg: object) -> None:
    model = Halved().train()
    kept = run(cfg, model, 5)
    assert [(name, iteration) for name, _, iteration in kept] == [("masks", 1), ("masks", 3), ("masks", 4)]
    image = kept[0][1]
    assert image.dtype == np.uint8
    assert image.shape[0] == 3
    cls, reg = np.split(image, 2, axis=1)  # a row a branch
    middle = cls.shape[1] // 2
    assert cls[:, middle, 40].max() > 75  # the left half is bright in one branch and dark in the other
    assert reg[:, middle, 40].max() == 25
    assert model.training


def test_models_without_sparse_towers_are_passed_over(cfg: object, caplog: pytest.LogCaptureFixture) -> None:
    assert run(cfg, nn.Identity(), 2) == []
    assert "Identity has no sparse towers" in caplog.text
