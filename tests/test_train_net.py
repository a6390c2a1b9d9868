"""``train_net.py`` as users run it, small: train, resume, evaluate, several processes, and its exit codes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from helpers.scripts import QUICKSTART, run_python

# The quickstart's model, shrunk to seconds; it needs no particular accuracy here.
SMALL = [
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.WARMUP_ITERS", "0"),
    *(
        "SOLVER.BASE_LR",
        "0.001",
        "TEST.NUM_PICTURES",
        "1",
        "TEST.EXPECTED_RESULTS",
        "[]",
        "DATALOADER.NUM_WORKERS",
        "0",
    ),
    *("INPUT.CROP.SIZE", "[96,96]", "INPUT.MIN_SIZE_TEST", "96", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_train',)"),
]

# Registers the generated images in every process, also in those that `launch` starts.
SCRIPT = """
import sys
import train_net
from d2_ext.data import register_coco_folder
register_coco_folder("tiny_train", {data!r}, json_file="train.json")
if __name__ == "__main__":
    sys.exit(train_net.main())
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of train_net.py that knows a data set of eight small generated images."""
    from d2_ext.synthetic import SyntheticConfig, generate

    folder = tmp_path_factory.mktemp("train_net")
    data = generate(SyntheticConfig(num_train=8, num_val=0), folder / "data", splits=("train",), progress=False)
    path = folder / "train_tiny.py"
    path.write_text(SCRIPT.format(data=str(data["train"])))
    return path


def _run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python(script, *arguments, cwd=script.parent)


def _train(script: Path, output: str, *flags: str, max_iter: int = 4) -> subprocess.CompletedProcess[str]:
    options = [*SMALL, "OUTPUT_DIR", output, "SOLVER.MAX_ITER", str(max_iter)]
    result = _run(script, "--config-file", str(QUICKSTART), *flags, *options)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def _weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / name, weights_only=True)["model"]


@pytest.fixture(scope="module")
def trained(script: Path) -> Path:
    """The folder of a finished run of four iterations."""
    _train(script, "run")
    return script.parent / "run"


def test_training_writes_checkpoints_metrics_table_and_images(trained: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"} <= names
    assert any(name.endswith("_detections.jpg") for name in names)
    assert any(name.endswith("_masks.jpg") for name in names)
    assert torch.load(trained / "model_final.pth", weights_only=True)["class_names"] == ["car", "van", "person", "bike"]
    log = (trained / "log.txt").read_text()
    assert "Average Precision" in log or "AP50" in log
    assert "Written to" in log


def test_live_mask_ratios_reach_the_metrics_file(trained: Path) -> None:
    last = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()][-2:]
    names = {name for line in last for name in line}
    assert {"loss_cls", "loss_box_reg", "total_loss", "lr", "bbox/AP50"} <= names
    assert any("ratio" in name for name in names)


def test_a_resumed_run_continues_at_the_checkpoint(script: Path, trained: Path) -> None:
    output = script.parent / "resumed"
    _train(script, str(output), max_iter=2)
    first = _weights(output, "model_0000001.pth")
    result = _train(script, str(output), "--resume", max_iter=4)
    assert "Starting training from iteration 2" in result.stdout + (output / "log.txt").read_text()
    assert any(not torch.equal(first[k], v) for k, v in _weights(output, "model_final.pth").items())


def test_eval_only_gives_the_numbers_of_the_end_of_training(script: Path, trained: Path) -> None:
    options = [*SMALL, "OUTPUT_DIR", "evaluated", "MODEL.WEIGHTS", str(trained / "model_final.pth")]
    result = _run(script, "--config-file", str(QUICKSTART), "--eval-only", *options)
    assert result.returncode == 0, result.stderr[-3000:]
    before = json.loads((trained / "inference/coco_instances_results.json").read_text())
    after = json.loads((script.parent / "evaluated/inference/coco_instances_results.json").read_text())
    assert after == before


def test_two_processes_train_on_the_cpu(script: Path) -> None:
    _train(script, "two", "--num-gpus", "2", "--dist-url", "auto", max_iter=2)
    assert (script.parent / "two/model_final.pth").is_file()
    assert (script.parent / "two/log.txt.rank1").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--config-file", "nowhere.yaml"], 2, "error: --config-file: no file"),
        (["SOLVER.MAX_ITR", "3"], 2, "error: unknown config key 'SOLVER.MAX_ITR'. Did you mean 'SOLVER.MAX_ITER'"),
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
    import train_net

    assert train_net.main(arguments) == code
    assert message in capsys.readouterr().err
