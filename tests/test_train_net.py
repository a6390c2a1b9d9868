"""``train_net.py`` as users run it, small: train in a process of its own, resume, evaluate, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import train_net
from d2_ext.data import register_coco_folder
from d2_ext.synthetic import SyntheticConfig, generate

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from helpers.forked import run_script
from helpers.scripts import QUICKSTART

# The quickstart's model, shrunk to seconds; it needs no particular accuracy here.
SMALL = [
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.WARMUP_ITERS", "0"),
    *("SOLVER.BASE_LR", "0.001", "TEST.NUM_PICTURES", "1", "TEST.EXPECTED_RESULTS", "[]"),
    *("DATALOADER.NUM_WORKERS", "0", "INPUT.CROP.SIZE", "[96,96]", "INPUT.MIN_SIZE_TEST", "96"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_train',)"),
]
SCRIPT = """
import sys
import train_net
from d2_ext.data import register_coco_folder
register_coco_folder("tiny_train", {data!r}, json_file="train.json")
if __name__ == "__main__":
    sys.exit(train_net.main())
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Eight generated images, registered as ``tiny_train``."""
    folder = tmp_path_factory.mktemp("train_net") / "data"
    made = generate(SyntheticConfig(num_train=8, num_val=0), folder, splits=("train",), progress=False)["train"]
    register_coco_folder("tiny_train", made, json_file="train.json")
    yield made
    DatasetCatalog.remove("tiny_train")
    MetadataCatalog.remove("tiny_train")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of four iterations, of a script that knows the data set."""
    script = tmp_path_factory.mktemp("script") / "train_tiny.py"
    script.write_text(SCRIPT.format(data=str(data)))
    options = ["--config-file", QUICKSTART, *SMALL, "OUTPUT_DIR", "run", "SOLVER.MAX_ITER", "4"]
    result = run_script(script, *options, cwd=script.parent)
    assert result.returncode == 0, result.stdout[-3000:]
    (script.parent / "console.txt").write_text(result.stdout)
    return script.parent / "run"


def _weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)["model"]


def test_training_writes_checkpoints_metrics_table_and_images(trained: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "MODEL_CARD.md", "last_checkpoint"} <= names
    assert any(name.endswith("_detections.jpg") for name in names)
    assert any(name.endswith("_masks.jpg") for name in names)
    assert torch.load(trained / "model_final.pth", weights_only=True)["class_names"] == ["car", "van", "person", "bike"]
    log = (trained / "log.txt").read_text()
    assert "Average Precision" in log or "AP50" in log
    assert "Written to" in log


def test_the_config_is_dumped_into_the_log_and_not_onto_the_console(trained: Path) -> None:
    log, console = (trained / "log.txt").read_text(), (trained.parent / "console.txt").read_text()
    assert "Full config:" in log
    assert "PIXEL_MEAN" in log
    assert "PIXEL_MEAN" not in console
    assert "Starting training from iteration 0" in console


def test_live_mask_ratios_reach_the_metrics_file(trained: Path) -> None:
    last = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()][-2:]
    names = {name for line in last for name in line}
    assert {"loss_cls", "loss_box_reg", "total_loss", "lr", "bbox/AP50"} <= names
    assert any("ratio" in name for name in names)


def test_a_resumed_run_continues_at_the_checkpoint(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "resumed"
    for iterations, flags in ((2, ()), (4, ("--resume",))):
        options = ["--config-file", str(QUICKSTART), *flags, *SMALL, "SOLVER.MAX_ITER", str(iterations)]
        assert train_net.main([*options, "OUTPUT_DIR", str(output)]) == 0
    assert "Starting training from iteration 2" in (output / "log.txt").read_text()
    first = _weights(output, "model_0000001.pth")
    assert any(not torch.equal(first[k], v) for k, v in _weights(output, "model_final.pth").items())


def test_eval_only_gives_the_numbers_of_the_end_of_training(data: Path, trained: Path, tmp_path: Path) -> None:
    options = ["--config-file", str(QUICKSTART), "--eval-only", *SMALL, "OUTPUT_DIR", str(tmp_path / "evaluated")]
    assert train_net.main([*options, "MODEL.WEIGHTS", str(trained / "model_final.pth")]) == 0
    before = json.loads((trained / "inference/coco_instances_results.json").read_text())
    after = json.loads((tmp_path / "evaluated/inference/coco_instances_results.json").read_text())
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--config-file", "nowhere.yaml"], 2, "error: --config-file: no file"),
        (["SOLVER.MAX_ITER", "3"], 2, "error: --config-file is missing"),
        (
            ["--config-file", str(QUICKSTART), "SOLVER.MAX_ITR", "3"],
            2,
            "error: unknown config key 'SOLVER.MAX_ITR'. Did you mean 'SOLVER.MAX_ITER'",
        ),
        (
            ["--config-file", str(QUICKSTART), "DATASETS.TRAIN", "('visdrone_tran',)"],
            2,
            "Did you mean 'visdrone_train'",
        ),
    ],
)
def test_wrong_usage_ends_with_one_line_and_code_2(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_net.main(arguments) == code
    assert message in capsys.readouterr().err
