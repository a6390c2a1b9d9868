"""Small training runs in processes of their own, see ``forked.py``, with faults at chosen moments."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from d2_ext.cli import train
from d2_ext.data import register_coco_folder
from d2_ext.engine.step import StepTrainer
from d2_ext.runs import seeds
from d2_ext.synthetic import SyntheticConfig, register_synthetic_drone, writer

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.utils import comm
from PIL import Image
from torch import Tensor, nn

from helpers.forked import FORKSERVER, become_command
from helpers.scripts import QUICKSTART

IMAGES = 7
MAX_ITER = 12
DRAWN = SyntheticConfig(num_train=6, num_val=3, sizes=((96, 64), (64, 96)))
DRAWN_OPTIONS: dict[str, Any] = {
    "DATASETS__TRAIN": "('drawn_train',)",
    "DATASETS__TEST": "('drawn_val',)",
    "MODEL__RETINANET__NUM_CLASSES": 4,
}
# All that has a state: AdamW, a schedule, averaged weights, running statistics, Gumbel noise, a moving loss
# normaliser, random crops and flips, groups of one orientation, the best weights.
OPTIONS: dict[str, Any] = {
    "SEED": 7,
    "INPUT.CROP.SIZE": "[64,64]",
    "MODEL.BACKBONE.NAME": "small_backbone",
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RETINANET.NUM_CLASSES": 2,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.CEASC.LOSS_NORMALIZER": "moving_average",
    "DATASETS.TRAIN": "('small_images',)",
    "DATASETS.TEST": "('small_images',)",
    "DATALOADER.NUM_WORKERS": 1,
    "SOLVER.MAX_ITER": MAX_ITER,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SOLVER.WARMUP_ITERS": 4,
    "SOLVER.EMA.ENABLED": True,
    "SOLVER.EMA.DECAY": 0.9,
    "SOLVER.EMA.WARMUP_ITERS": 4,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 20,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "TEST.EVAL_PERIOD": 5,
    "TEST.BEST.SAVE": True,
    "TEST.BEST.METRIC": "bbox/AP50",
    "TEST.EXPECTED_RESULTS": "[]",
    "TEST.NUM_PICTURES": 0,
}


class SmallBackbone(Backbone):
    """Pyramid p2..p6 of one normalised convolution, and averages."""

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = get_norm(norm, channels)
        self.strides = {f"p{level}": 2**level for level in range(2, 7)}
        self.channels = channels

    @property
    def size_divisibility(self) -> int:
        return 64

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        finest = self.norm(self.conv(x)).relu()
        return {name: nn.functional.avg_pool2d(finest, stride // 4) for name, stride in self.strides.items()}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=self.channels, stride=stride) for name, stride in self.strides.items()}


if "small_backbone" not in BACKBONE_REGISTRY:

    def small_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SmallBackbone:
        return SmallBackbone(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.RESNETS.NORM)

    BACKBONE_REGISTRY.register(small_backbone)


def write_images(folder: Path, count: int = IMAGES) -> Path:
    """Noise of 96 x 72 or 72 x 96 px with two bright rectangles in three of four, and their COCO file."""
    noise = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        width, height = (96, 72) if number % 3 else (72, 96)
        image = noise.integers(0, 120, (height, width, 3), dtype=np.uint8)
        for box in range(2 if number % 4 else 0):
            x, y = (int(v) for v in noise.integers(2, 36, 2))
            image[y : y + 24, x : x + 20] = 220 if box else 160
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": box + 1, "iscrowd": 0}
            annotations.append({**annotation, "bbox": [x, y, 20, 24], "area": 480})
        Image.fromarray(image).save(folder / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    categories = [{"id": 1, "name": "grey"}, {"id": 2, "name": "white"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "all.json").write_text(json.dumps(content))
    first = {**content, "images": images[1:2], "annotations": [a for a in annotations if a["image_id"] == 1]}
    (folder / "first.json").write_text(json.dumps(first))
    return folder


def arguments(data: Path, output: Path, *flags: str, **options: Any) -> list[str]:
    """Command line of a run; keys of ``options`` have ``__`` for the dot, and None leaves a key out."""
    merged = {**OPTIONS, **{key.replace("__", "."): value for key, value in options.items()}}
    pairs = [str(word) for key, value in merged.items() if value is not None for word in (key, value)]
    return ["--config-file", str(QUICKSTART), *flags, "OUTPUT_DIR", str(output), *pairs]


class Fault:
    """Something that goes wrong when a place is reached for the n-th time.

    Args:
        place: "step" (gradients are there, weights not yet changed), "evaluation", "data" (a worker that loads kills
            the run), "worker" (it kills itself), "checkpoint" (a part of it is written), "rename" (all of it is, under
            its temporary name), "loss", "drawing" (an image of synthetic data), "listing" (their json is written),
            "start" (all was checked, nothing is written yet; ``what`` is a call).
        count: how often the place is passed before.
        what: number of the signal; "nan" for the loss; "full" for a disk that is full in the middle of a checkpoint; or
            a call to be made, once.
        share: of the checkpoint that is written, in [0, 1).
        rank: process of a run to which it happens.
    """

    def __init__(
        self, place: str, count: int, what: Any = signal.SIGKILL, share: float = 0.5, rank: int | None = None
    ) -> None:
        self.place, self.left, self.what, self.share, self.rank = place, count, what, share, rank
        self.main_process = 0

    def __repr__(self) -> str:
        return f"{self.place} {self.left}"

    def install(self) -> None:
        """Patch this process, which forks the workers afterwards."""
        self.main_process = os.getpid()
        if self.place == "start":
            self.what()
            return
        places: dict[str, tuple[Any, str]] = {
            "step": (StepTrainer, "_change_weights"),
            "loss": (StepTrainer, "_accumulate"),
            "evaluation": (COCOEvaluator, "process"),
            "data": (DatasetMapper, "__call__"),
            "worker": (DatasetMapper, "__call__"),
            "checkpoint": (torch, "save"),
            "rename": (os, "replace"),
            "drawing": (writer, "_render"),
            "listing": (writer, "_write_json"),
        }
        owner, name = places[self.place]
        original = getattr(owner, name)

        def patched(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            return self._happen(original, args, kwargs) if self.left < 0 else original(*args, **kwargs)

        setattr(owner, name, patched)

    def _happen(self, original: Callable, args: tuple, kwargs: dict) -> Any:
        if self.what == "nan":
            return {name: loss * float("nan") for name, loss in original(*args, **kwargs).items()}
        if callable(self.what):
            if self.left == -1:
                self.what()
            return original(*args, **kwargs)
        if self.place == "worker":
            os.kill(os.getpid(), self.what)
        if self.place == "checkpoint":
            content, file = args
            original(content, file)
            file.truncate(int(file.tell() * self.share))
            file.flush()
            if self.what == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        first, self.left = self.left == -1, -2
        if first:
            os.kill(self.main_process, self.what)
        return None if self.place == "checkpoint" else original(*args, **kwargs)


def child(data: str, drawn: str, argv: list[str], log: str, fault: Fault | None, environment: dict[str, str]) -> None:
    """What a process does: ``train_net.py`` with a data set of its own, its output in a file."""
    become_command(["train_net.py", *argv], log, environment)
    register_data(data)
    register_synthetic_drone(drawn, config=DRAWN, name="drawn")
    seeds.START_METHOD = "fork"  # as the processes of `launch`
    main = train.train_or_evaluate
    before_launch = fault is not None and fault.place in ("drawing", "listing")
    if before_launch:
        fault.install()

    def main_with_fault(args: argparse.Namespace) -> None:
        if fault is not None and not before_launch and fault.rank in (None, comm.get_rank()):
            fault.install()
        main(args)

    train.train_or_evaluate = main_with_fault
    sys.exit(train.main(argv))


def register_data(folder: str) -> None:
    """Register the images of :func:`write_images`, and the first of them alone."""
    if "small_images" not in DatasetCatalog:
        register_coco_folder("small_images", folder, json_file="all.json")
        register_coco_folder("first_image", folder, json_file="first.json")


def fresh_data(folder: Path) -> Path:
    """:func:`write_images` into a folder, registered in place of those of an earlier test; returns the folder."""
    for name in ("small_images", "first_image"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    register_data(str(write_images(folder)))
    return folder


class Runs:
    """Starts runs on one data set.

    Args:
        folder: an empty folder for everything.
    """

    def __init__(self, folder: Path, images: int = IMAGES) -> None:
        self.folder = folder
        self.data = write_images(folder / "data", images)

    def start(
        self,
        name: str,
        *flags: str,
        fault: Fault | None = None,
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> BaseProcess:
        """Start a run in the folder ``name``."""
        argv = arguments(self.data, self.folder / name, *flags, **options)
        log = str(self.folder / f"{name}.log")
        arguments_of_child = (str(self.data), str(self.drawn(name)), argv, log, fault, environment or {})
        process = FORKSERVER.Process(target=child, args=arguments_of_child)
        process.start()
        return process

    def run(self, name: str, *flags: str, fault: Fault | None = None, **options: Any) -> int:
        """Run to the end; returns the exit code, negative for a signal."""
        return self.wait(self.start(name, *flags, fault=fault, **options))

    def wait(self, process: BaseProcess) -> int:
        """Wait for a run and for everything it started; returns the exit code, negative for a signal."""
        for _ in range(900):  # seconds in which this process ran too: a machine that stood still is no hang
            process.join(1)
            if process.exitcode is not None:
                break
        assert process.exitcode is not None, f"process {process.pid} hangs"
        if process.exitcode == -signal.SIGKILL:  # its workers would notice within seconds
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        wait_for_session(process.pid)
        return process.exitcode

    def drawn(self, name: str) -> Path:
        """Root of the synthetic data of a run, which are drawn when it asks for them: ``DRAWN_OPTIONS``."""
        return self.folder / f"{name}_drawn"

    def log(self, name: str) -> str:
        """Everything printed."""
        return (self.folder / f"{name}.log").read_text()

    def checkpoint(self, name: str, file: str = "model_final.pth") -> dict[str, Any]:
        """Content of a checkpoint."""
        return torch.load(self.folder / name / file, weights_only=True)


def free_port() -> int:
    """A port that nobody gets by chance meanwhile: the system hands out those from 32768 on."""
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("a hundred ports below 32768 are taken")


def wait_for_session(leader: int) -> None:
    """Wait until nothing of a session is left; an error after a minute in which this process ran."""
    for _ in range(600):
        alive = processes_of_session(leader)
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError(f"left behind: {alive}")


def processes_of_session(leader: int) -> list[str]:
    """Processes that a run has left behind; zombies too, but for orphans, which the system has to clear away."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().rsplit(")", 1)
        except OSError:  # it ended meanwhile
            continue
        state, parent, _, session = fields.split()[:4]
        if int(session) == leader and (state, parent) != ("Z", "1"):
            found.append(f"{name}) {state}")
    return found


def differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Places where two checkpoints are not the same, bit for bit."""
    if isinstance(first, dict):
        keys = {**first, **second}
        missing = [f"{path}/{key}" for key in keys if key not in first or key not in second]
        both = [key for key in first if key in second]
        return missing + [d for key in both for d in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [path]
        return [d for n, (a, b) in enumerate(zip(first, second)) for d in differences(a, b, f"{path}/{n}")]
    same = torch.equal(first, second) if isinstance(first, Tensor) else first == second
    return [] if same else [path]
