"""Hold the library under load and measure what grows: memory, file handles, threads.

Four phases on a tiny detector: training iterations, evaluated images, and predictions of one image after the other
in changing sizes, whole and on tiles. Samples are taken at even distances; growth is judged from the second quarter on,
when caches and allocators are warm.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import d2_ext  # noqa: F401 (registers the models)
from d2_ext.data import register_coco_folder
from d2_ext.engine import Trainer
from d2_ext.inference import TiledDetector
from d2_ext.runs.config import load_run_config
from d2_ext.synthetic import SyntheticConfig, generate

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

EXAMPLES = """examples:
  what the page on reliability shows, some minutes:
    python benchmarks/soak.py --json results/bench/soak.json
  half a minute:
    python benchmarks/soak.py --iterations 200 --images 200
"""
ROOT = Path(__file__).resolve().parents[1]
NAME = "soak"
NUM_SAMPLES = 40
SIDES = (64, 96, 160)  # of predicted images, px
TILE = 64
SMALL = {
    "DATASETS.TRAIN": f"('{NAME}',)",
    "DATASETS.TEST": f"('{NAME}',)",
    "DATALOADER.NUM_WORKERS": "0",
    "INPUT.CROP.SIZE": "[64,64]",
    "TEST.TILE.BATCH_SIZE": "4",
    "MODEL.FPN.OUT_CHANNELS": "32",
    "MODEL.RETINANET.NUM_CONVS": "1",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "0.005",  # the first weights give 0.01: lists of detections are full
    "TEST.DETECTIONS_PER_IMAGE": "20",
    "MODEL.DEVICE": "cpu",
    "SOLVER.IMS_PER_BATCH": "2",
    "TEST.NUM_PICTURES": "0",
    "TEST.EXPECTED_RESULTS": "[]",
}


@dataclass(frozen=True)
class Sample:
    """Of this process: resident memory in MB, open file handles, threads, after so many steps."""

    step: int
    memory: float
    handles: int
    threads: int


def sample(step: int) -> Sample:
    """Measure now; Linux only."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Sample(step, round(memory, 2), len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))


def growth(samples: Sequence[Sample]) -> dict[str, float]:
    """How much more there is at the end than after a quarter of the steps.

    The median of the last quarter minus that of the second one; memory also as a slope in kB a step (least squares).
    """
    quarter = len(samples) // 4
    warm, last = samples[quarter : 2 * quarter], samples[-quarter:]
    rise = {
        field: float(np.median([getattr(s, field) for s in last]) - np.median([getattr(s, field) for s in warm]))
        for field in ("memory", "handles", "threads")
    }
    rest = samples[quarter:]
    slope = np.polyfit([s.step for s in rest], [s.memory for s in rest], 1)[0] * 1024
    return {
        "memory_mb": round(rise["memory"], 2),
        "memory_kb_per_step": round(float(slope), 3),
        "handles": rise["handles"],
        "threads": rise["threads"],
        "start_mb": warm[0].memory,
        "end_mb": last[-1].memory,
    }


def watch(steps: Iterator[None], count: int) -> list[Sample]:
    """Go through so many steps and sample at even distances."""
    every = max(count // NUM_SAMPLES, 1)
    return [sample(number) for number, _ in zip(range(1, count + 1), steps) if number % every == 0]


def training(cfg: CfgNode) -> Iterator[None]:
    """One training iteration a step."""
    trainer = Trainer(cfg)
    trainer.iter = 0
    with EventStorage(0) as trainer.storage:
        while True:
            trainer.run_step()
            trainer.storage.step()
            yield


def evaluation(cfg: CfgNode) -> Iterator[None]:
    """One evaluated image a step: the data set again and again, with its metric and its files."""
    model = Trainer.build_model(cfg).eval()
    size = len(DatasetCatalog.get(NAME))
    while True:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
            Trainer.test(cfg, model)
        for _ in range(size):
            yield


def prediction(cfg: CfgNode) -> Iterator[None]:
    """One prediction a step, in sizes that change."""
    model = Trainer.build_model(cfg).eval()
    sizes = np.random.default_rng(0)
    with torch.no_grad():
        while True:
            # Nine sizes: the convolutions of each new one stay in the library's cache, which is no growth for ever.
            height, width = (int(side) for side in sizes.choice(SIDES, 2))
            model([{"image": torch.zeros(3, height, width, dtype=torch.uint8), "height": height, "width": width}])
            yield


def tiled_prediction(cfg: CfgNode) -> Iterator[None]:
    """One image a step, on its overlapping tiles, in sizes that change; noise, so that tiles have much to merge."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.TILE.SIZE = TILE
    detector = TiledDetector(Trainer.build_model(cfg).eval(), cfg)
    random = np.random.default_rng(0)
    while True:
        detector.detect(random.integers(0, 256, (*random.choice(SIDES, 2), 3), dtype=np.uint8))
        yield


PHASES: dict[str, Callable[[CfgNode], Iterator[None]]] = {
    "training": training,
    "evaluation": evaluation,
    "prediction": prediction,
    "tiled prediction": tiled_prediction,
}


def soak(iterations: int, images: int, folder: Path, names: Iterable[str] = PHASES) -> dict[str, Any]:
    """Run phases.

    Args:
        iterations: of training.
        images: evaluated, and predicted.
        folder: for data and files of the evaluation.
        names: keys of ``PHASES``.

    Returns:
        For each phase the steps, seconds, growth and samples; and the machine.
    """
    recipe = SyntheticConfig(num_train=8, num_val=0, sizes=((96, 64),))
    data = generate(recipe, folder / "data", splits=("train",), progress=False)
    register_coco_folder(NAME, data["train"], json_file="train.json")
    try:
        cfg = soak_config(folder)
        report: dict[str, Any] = {"machine": machine(), "phases": {}}
        for name in names:
            count = iterations if name == "training" else images
            started = time.perf_counter()
            samples = watch(PHASES[name](cfg), count)
            report["phases"][name] = {
                "steps": count,
                "seconds": round(time.perf_counter() - started, 1),
                "growth": growth(samples),
                "samples": [asdict(s) for s in samples],
            }
        return report
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME)


def soak_config(folder: Path) -> CfgNode:
    """The quickstart's model, made small."""
    options = [word for pair in SMALL.items() for word in pair]
    config = ROOT / "configs/quickstart/retinanet_ceasc_R18_synthetic.yaml"
    return load_run_config(config, [*options, "OUTPUT_DIR", str(folder / "run")])


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "started_threads": threading.active_count(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--iterations", type=int, default=2000, help="of training (%(default)s)")
    parser.add_argument("--images", type=int, default=2000, help="evaluated and predicted (%(default)s)")
    parser.add_argument("--json", type=Path, help="write figures and samples here")
    args = parser.parse_args(argv)
    if min(args.iterations, args.images) < NUM_SAMPLES:
        parser.error(f"--iterations and --images must be at least {NUM_SAMPLES}")
    with tempfile.TemporaryDirectory() as folder:
        report = soak(args.iterations, args.images, Path(folder))
    for name, phase in report["phases"].items():
        print(f"{name}: {phase['steps']} steps in {phase['seconds']} s, growth {phase['growth']}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        temporary = args.json.with_suffix(".tmp")
        temporary.write_text(json.dumps(report, indent=1) + "\n")
        temporary.replace(args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
