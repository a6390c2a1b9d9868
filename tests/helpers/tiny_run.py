"""A run folder of a real training of seconds, on generated images with class names that try to be markup."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from helpers.forked import run_script
from helpers.scripts import QUICKSTART

DATASET = "tests_tiny_run"
CLASS_NAMES = ("<script>document.title='broken in'</script>", '$x^$ & "van"', "person", "bike")
SMALL = [
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "22", "SOLVER.WARMUP_ITERS", "0", "SOLVER.BASE_LR", "0.0001"),
    *("DATALOADER.NUM_WORKERS", "0", "INPUT.CROP.SIZE", "[96,96]", "INPUT.MIN_SIZE_TEST", "96"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "TEST.NUM_PICTURES", "1", "TEST.EXPECTED_RESULTS", "[]", "OUTPUT_DIR", "run"),
    *("TEST.EVAL_PERIOD", "11", "TEST.PICTURE_SCORE_THRESH", "0.05"),
    *("MODEL.RETINANET.PRIOR_PROB", "0.3"),  # so that it detects something after seconds
    *("DATASETS.TRAIN", f"('{DATASET}',)", "DATASETS.TEST", f"('{DATASET}',)"),
]
SCRIPT = """
import sys
import train_net
from d2_ext.data import register_coco_folder
register_coco_folder({name!r}, {data!r}, json_file="train.json")
if __name__ == "__main__":
    sys.exit(train_net.main())
"""


@dataclass(frozen=True)
class TinyRun:
    """A finished run.

    Attributes:
        folder: of the run.
        data: folder with ``train.json`` and the images.
        images: its images.
    """

    folder: Path
    data: Path
    images: list[Path]


def train_tiny_run(folder: Path) -> TinyRun:
    """Generate six images and train 22 iterations on them, in a process of its own."""
    from d2_ext.synthetic import SyntheticConfig, generate

    made = generate(SyntheticConfig(num_train=6, num_val=0), folder / "data", splits=("train",), progress=False)
    data = Path(made["train"])
    (data / "fingerprint.json").unlink()  # one json is what users' folders have
    content = json.loads((data / "train.json").read_text())
    for category, name in zip(content["categories"], CLASS_NAMES, strict=True):
        category["name"] = name
    (data / "train.json").write_text(json.dumps(content))
    script = folder / "train_tiny.py"
    script.write_text(SCRIPT.format(name=DATASET, data=str(data)))
    done = run_script(script, "--config-file", QUICKSTART, *SMALL, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:]
    return found_tiny_run(folder)


def found_tiny_run(folder: Path) -> TinyRun:
    """What :func:`train_tiny_run` has made of a folder."""
    (listing,) = (folder / "data").rglob("train.json")
    return TinyRun(folder / "run", listing.parent, sorted((listing.parent / "images").iterdir()))
