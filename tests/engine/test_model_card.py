"""The card beside a finished training says what it is; names of strangers cannot be markup in it."""

from __future__ import annotations

import json
from pathlib import Path

from d2_ext import add_d2_ext_config
from d2_ext.engine.model_card import write_model_card

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import nn

NAMES = ("car", "<b>`van`</b> | x\n# title")
RESULTS = {"bbox": {"AP": 27.5701, "AP50": float("nan"), "AP-car": 3.0}}


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    changes = {"OUTPUT_DIR": str(tmp_path), "SOLVER.IMS_PER_BATCH": 4, "SOLVER.ACCUMULATE_BATCHES": 2, "SEED": 3}
    changes |= {"DATASETS.TRAIN": ("own_train",), "DATASETS.TEST": ("own_val",), "DATASETS.FOLDER": "data/own"}
    changes |= {"MODEL.META_ARCHITECTURE": "FCOS", "MODEL.WEIGHTS": "", "SOLVER.BASE_LR": 0.01}
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    return cfg


def test_a_card_has_data_figures_versions_and_commands(cfg: CfgNode, tmp_path: Path) -> None:
    command = ["/usr/bin/python", "train_net.py", "--resume", "--config-file", "my recipe.yaml", "SEED", "3"]
    (tmp_path / "run.json").write_text(json.dumps({"starts": [{"command": command}, {"command": ["x", "other"]}]}))
    card = write_model_card(cfg, nn.Linear(99, 100), NAMES, 500, RESULTS).read_text()
    for part in (
        "# FCOS, 2 classes\n",
        "\n    d2_ext predict --weights model_final.pth IMAGES --output predicted\n",
        "| parameters | 0.01 million |",
        "| trained on | `own_train`, of the folder `own` |",
        "| started from | random weights |",
        "| training | 500 iterations of 8 images, learning rate 0.01, seed 3 |",
        "Last evaluation, on `own_val`:\n",
        "| `bbox/AP` | 27.57 |",
        "| `bbox/AP50` | none |",
        "\n    python train_net.py --config-file 'my recipe.yaml' SEED 3\n",
        torch.__version__,
    ):
        assert part in card, part
    assert "Classes: `car`, `<b>'van'</b> / x # title`\n" in card
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == ["MODEL_CARD.md"]


def test_what_is_not_known_is_left_out(cfg: CfgNode) -> None:
    cfg.merge_from_list(["SEED", -1, "SOLVER.EMA.ENABLED", True, "DATASETS.FOLDER", ""])
    card = write_model_card(cfg, nn.Linear(1, 1), (), 1, None).read_text()
    assert "--weights model_final_ema.pth" in card
    assert "seed" not in card
    assert "| trained on | `own_train` |" in card
    assert "Nothing was evaluated." in card
    assert "Classes: without names" in card
    assert "Train with `config.yaml`." in card


def test_a_record_that_cannot_be_read_is_no_run_without_a_command(cfg: CfgNode, tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"run\.json"):
        write_model_card(cfg, nn.Linear(1, 1), (), 1, None)
    assert not (tmp_path / "MODEL_CARD.md").exists()  # so that --resume writes it
