"""The command line that draws masks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from d2_ext.engine import build_config
from d2_ext.visualization.masks import CAPTION_HEIGHT

import cv2
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs/VisDrone/gfl_ceasc_R18_FPN512.yaml")
OPTIONS = ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "32", "INPUT.MIN_SIZE_TEST", "96"]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("visualize_masks", ROOT / "tools/visualize_masks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def weights(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    arguments = tool.argument_parser().parse_args(
        ["x.jpg", "--config-file", CONFIG, "--weights", "", "--opts", *OPTIONS, "MODEL.WEIGHTS", ""]
    )
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": build_model(build_config(arguments)).state_dict()}, path)
    return str(path)


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.new("RGB", (128, 96), (90, 120, 30)).save(tmp_path / "street.jpg")
    return str(tmp_path / "street.jpg")


def test_a_grid_of_levels_and_branches_is_written(
    tool: ModuleType, weights: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--config-file", CONFIG, "--weights", weights, "--output", str(tmp_path / "out"), "--tile-width", "64"]
    assert tool.main([image, *arguments, "--opts", *OPTIONS]) == 0
    path = tmp_path / "out" / "street_masks.jpg"
    assert str(path) in capsys.readouterr().out
    # 2 branches x 5 levels; a tile is 64 x 48 with caption and border
    assert cv2.imread(str(path)).shape[:2] == (2 * (48 + CAPTION_HEIGHT + 2), 5 * (64 + 2))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_cannot_be_used_is_said(
    tool: ModuleType, weights: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    end = ["--output", str(tmp_path / "out"), "--opts", *OPTIONS]
    dense = str(ROOT / "configs/VisDrone/gfl_R18_FPN512.yaml")
    (tmp_path / "note.jpg").write_text("no image")
    for arguments, code, message in (
        ([image, "--config-file", dense, "--weights", weights], 2, "GFL has no sparse towers"),
        ([image, image, "--config-file", CONFIG, "--weights", weights], 2, "Several images are called 'street'"),
        ([image, "--config-file", CONFIG, "--weights", str(tmp_path / "no.pth")], 1, "no.pth"),
        ([str(tmp_path / "no.jpg"), "--config-file", CONFIG, "--weights", weights], 1, "There is no image"),
        ([str(tmp_path / "note.jpg"), "--config-file", CONFIG, "--weights", weights], 1, "cannot be read as an image"),
    ):
        assert tool.main([*arguments, *end]) == code
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
