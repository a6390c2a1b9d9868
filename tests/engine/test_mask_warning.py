"""One word, not more, when the masks stay closed where objects are."""

from __future__ import annotations

from types import SimpleNamespace

import d2_ext
from d2_ext.engine.hooks import MaskRecallWarning

import pytest
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage


def warnings(caplog: pytest.LogCaptureFixture, mask_loss: float, **recall: float) -> list[str]:
    """What is said in 1000 iterations with a warm-up of 300, in which both masks are closed."""
    cfg = get_cfg()
    d2_ext.add_d2_ext_config(cfg)
    cfg.SOLVER.WARMUP_ITERS, cfg.MODEL.CEASC.MASK_LOSS_WEIGHT = 300, mask_loss
    hook = MaskRecallWarning(cfg)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        for iteration in range(1000):
            hook.trainer.iter = storage.iter = iteration
            for branch, value in recall.items():
                storage.put_scalar(f"mask_recall/{branch}", value if iteration >= 400 else 0.0)
                storage.put_scalar(f"mask_recall/p3_{branch}", 0.0)
            hook.after_step()
    return [record.getMessage() for record in caplog.records]


def test_a_closed_mask_is_named_once_with_what_to_change(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = warnings(caplog, 0.0, cls=0.95, reg=0.25)
    assert "the reg mask lets through 25%" in message
    assert "cls mask" not in message
    assert "MASK_LOSS_WEIGHT to 1 (now 0" in message


def test_with_the_mask_loss_its_weight_is_what_to_change(caplog: pytest.LogCaptureFixture) -> None:
    (message,) = warnings(caplog, 1.0, cls=0.5, reg=0.25)
    assert "the cls mask lets through 50% and the reg mask lets through 25%" in message
    assert "MASK_POSITIVE_WEIGHT (now 2)" in message


@pytest.mark.parametrize("recall", [{"cls": 0.95, "reg": 0.9}, {}], ids=["open masks", "no masks"])
def test_nothing_is_said_of_open_masks_and_of_dense_heads(
    caplog: pytest.LogCaptureFixture, recall: dict[str, float]
) -> None:
    assert warnings(caplog, 1.0, **recall) == []
