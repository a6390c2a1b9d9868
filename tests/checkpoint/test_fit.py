"""Weights that do not fit a model are refused; those for another head are not."""

from __future__ import annotations

from pathlib import Path

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.errors import CheckpointError
from d2_ext.modeling.backbone.vovnet import VoVNet, VoVNetSpec

import pytest
import torch
from torch import nn


class _Detector(nn.Module):
    """A trunk of four weights and a head of two."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict({"bottom_up": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))})
        self.head = nn.Linear(2, classes)


def _load(folder: Path, weights: dict[str, torch.Tensor], *, whole: bool = False) -> None:
    torch.save({"model": weights}, folder / "model.pth")
    checkpointer = SafeCheckpointer(_Detector(), save_to_disk=False)
    checkpointer.whole = whole
    checkpointer.load(str(folder / "model.pth"))


def _trunk(count: int) -> dict[str, torch.Tensor]:
    names = [n for n in _Detector().state_dict() if n.startswith("backbone")][:count]
    return {name: _Detector().state_dict()[name] for name in names}


def test_training_accepts_a_trunk_without_a_head(tmp_path: Path) -> None:
    _load(tmp_path, _trunk(4))


def test_training_accepts_a_head_for_other_classes_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _load(tmp_path, _Detector(classes=5).state_dict())
    assert "2 weights start anew" in caplog.text
    assert "head.bias, head.weight" in caplog.text


def test_weights_of_a_vovnet_with_another_stem_start_anew(tmp_path: Path) -> None:
    """Its keys are not paths of modules, so that fvcore cannot follow them where shapes differ."""
    bodies = (VoVNetSpec(stem, (8, 8, 8, 8), (16, 16, 16, 16), 1, (1, 1, 1, 1)) for stem in ((8, 8, 16), (8, 16)))
    old, new = (VoVNet(body=body, norm="BN") for body in bodies)
    torch.save({"model": old.state_dict()}, tmp_path / "model.pth")
    before = {name: value.clone() for name, value in new.state_dict().items()}
    SafeCheckpointer(new, save_to_disk=False).load(str(tmp_path / "model.pth"))
    found, kept = old.state_dict(), 0
    for name, value in new.state_dict().items():
        fits = found[name].shape == value.shape
        torch.testing.assert_close(value, found[name] if fits else before[name])
        kept += fits
    assert 0 < kept < len(before)


def test_training_refuses_a_trunk_of_which_most_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"only 1 of the 4 weights of backbone\.bottom_up"):
        _load(tmp_path, _trunk(1))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (_trunk(4), r"2 are missing \(1 in head.weight, 1 in head.bias\)|2 are missing \(1 in head.bias"),
        (_Detector(classes=5).state_dict(), r"2 have another shape .*\(5, 2\) in the file, \(3, 2\) in the model"),
    ],
)
def test_evaluation_wants_every_weight(weights: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        _load(tmp_path, weights, whole=True)
