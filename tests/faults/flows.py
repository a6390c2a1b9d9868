"""The commands that :mod:`faults.sweep` runs with failures: tiny models, tiny images, everything in one folder."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2_ext.cli import convert_checkpoint, convert_dataset, export, make_demo_data, predict, report, train
from d2_ext.errors import ExportError
from d2_ext.export import formats
from d2_ext.synthetic import scene

import cv2
import torch

from helpers import small_runs
from helpers.export_models import noise as noise_tensor
from helpers.export_models import tiny_config, tiny_model
from helpers.inference_detectors import CEASC, noise, small_cfg, write_weights
from helpers.own_folders import yolo_folder

TRAINING: dict[str, Any] = {
    "DATALOADER__NUM_WORKERS": 0,
    "SOLVER__MAX_ITER": 4,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "SOLVER__WARMUP_ITERS": 2,
    "SOLVER__EMA__WARMUP_ITERS": 2,
    "TEST__EVAL_PERIOD": 2,
    "TEST__NUM_PICTURES": 1,
    "DATASETS__TEST": "('first_image',)",
}
MADE_OUTPUT = "out"


@dataclass(frozen=True)
class Flow:
    """A command that is run with failures.

    Attributes:
        name: of it.
        main: takes a command line, returns the exit code.
        first: the command line that meets the failure.
        again: that of the next run.
        before: a folder that is what ``out`` holds before the run; None: it is not there.
        limit: calls after which it does what another flow does; 0: none.
        prepare: called once in the process that forks the runs, such as to compute what they share.
        images: a folder of which each image that memory does not suffice for is listed in ``unreadable.txt``, while
            the run goes on without it; None: there is none.
    """

    name: str
    main: Callable[[Sequence[str]], int]
    first: list[str]
    again: list[str]
    before: Path | None = None
    limit: int = 0
    prepare: Callable[[], object] = lambda: None
    images: Path | None = None


def make_flows(base: Path) -> dict[str, Flow]:
    """All flows, by name; what they need is made in ``base``, where they write into ``out``."""
    data, out = small_runs.fresh_data(base / "data"), base / MADE_OUTPUT
    training = small_runs.arguments(data, out, **TRAINING)
    resuming = small_runs.arguments(data, out, "--resume", **TRAINING)
    finished = base / "finished"
    detector = base / "detector"
    write_weights(small_cfg(CEASC, "DATASETS.TRAIN", "('synthetic_drone_train',)"), detector)
    (base / "images").mkdir()
    for number, size in enumerate(((48, 64), (64, 48))):
        cv2.imwrite(str(base / f"images/{number}.png"), noise(*size, number))
    (base / "images/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    yolo_folder(base / "yolo", {"train": ["a", "b"], "val": ["c"]})
    cfg = tiny_config("fcos", "DATASETS.TEST", ("first_image",), "INPUT.MIN_SIZE_TEST", 96)
    (base / "model").mkdir()
    (base / "model/config.yaml").write_text(cfg.dump())
    torch.save({"model": tiny_model("fcos").state_dict(), "class_names": ["a", "b", "c"]}, base / "model/model.pth")
    cv2.imwrite(str(base / "model/image.png"), noise_tensor(1, 3, 96, 128)[0].permute(1, 2, 0).numpy())

    predicted = [str(base / "images"), "--weights", str(detector / "model_final.pth"), "--output", str(out)]
    predicted += ["--score", "0.1", "--device", "cpu", "--batch-size", "2"]
    tables = [*predicted, "--masks", "--mask-width", "32", "--save-json", "--save-csv"]
    tiles = [*predicted, "--tile", "40", "--no-drawings", "--save-json", "--batch-size", "1"]  # images are alone
    files = ["--config-file", str(base / "model/config.yaml"), "--weights", str(base / "model/model.pth")]
    exported = [*files, "--images", str(base / "model/image.png"), "--threads", "1", "--output"]
    suffixes = {"onnx": "detector.onnx", "torch": "detector.pt2", "openvino": "detector.xml"}
    exports = {kind: [*exported, str(out / name), "--format", kind] for kind, name in suffixes.items()}
    drawn = ["--output", str(out), "--num-train", "2", "--num-val", "1", "--size", "96x64", "--quiet"]
    drawn += ["--contact-sheet", str(out / "sheet.jpg")]
    converted = ["--input", str(base / "yolo"), "--output", str(out / "coco"), "--images"]
    checkpoint = ["--source", "d2_ext", "--input", str(base / "model/model.pth"), "--output"]
    reported = [str(finished), "--output", str(out / "report.html"), "--images", "1"]
    reported += ["--mask-plot", str(out / "masks.png")]
    flows = [
        Flow("training", train.main, training, resuming),
        Flow("resuming", train.main, resuming, resuming, base / "interrupted"),
        Flow("training anew", train.main, training, training, finished, limit=60),
        Flow(
            "evaluation",
            train.main,
            [*resuming[:3], "--eval-only", *resuming[3:]],
            [*resuming[:3], "--eval-only", *resuming[3:]],
            finished,
        ),
        *(
            Flow(f"prediction{more}", predict.main, line, [*line, "--overwrite"], images=base / "images")
            for more, line in ((": drawings, masks, tables", tables), (" on tiles", tiles))
        ),
        *(
            Flow(
                f"export: {kind}",
                export.main,
                line,
                [*line, "--overwrite"],
                prepare=functools.partial(keep_graphs, exports["torch" if kind == "torch" else "onnx"], base),
            )
            for kind, line in exports.items()
        ),
        Flow("data generation", make_demo_data.main, drawn, drawn, prepare=functools.partial(keep_scenes, drawn, base)),
        Flow(
            "conversion of data, copied",
            convert_dataset.main,
            [*converted, "copy"],
            [*converted, "copy", "--overwrite"],
        ),
        Flow(
            "conversion of data over an earlier one",
            convert_dataset.main,
            [*converted, "link", "--overwrite"],
            [*converted, "link", "--overwrite"],
            base / "converted",
        ),
        *(
            Flow(f"conversion of weights: {suffix}", convert_checkpoint.main, line, [*line, "--overwrite"])
            for suffix in (".pth", ".safetensors")
            for line in [[*checkpoint, str(out / f"weights{suffix}")]]
        ),
        Flow("report", report.main, reported, reported),
    ]
    return {flow.name: flow for flow in flows}


def interrupt(finished: Path, interrupted: Path) -> None:
    """What a finished training was after half of it: with its first checkpoint alone."""
    shutil.copytree(finished, interrupted)
    for name in ("model_0000003.pth", "model_final.pth", "model_final_ema.pth"):
        (interrupted / name).unlink()
    (interrupted / "last_checkpoint").write_text("model_0000001.pth")
    rows = (interrupted / "metrics.json").read_text().splitlines(keepends=True)
    kept = [row for row in rows if json.loads(row)["iteration"] < 2]
    (interrupted / "metrics.json").write_text("".join(kept))


def keep_graphs(line: Sequence[str], base: Path) -> None:
    """Record the graphs of an export once, and let the forked runs have them: it takes seconds and writes nothing."""
    for owner, name in ((formats, "trace"), (torch.onnx, "export")):
        call = getattr(owner, name)
        setattr(owner, name, _first_result(getattr(call, "__wrapped__", call)))
    load_runtime = export.load_runtime

    def none(*args: Any, **kwargs: Any) -> Any:  # their threads would not live on in the forked runs
        raise ExportError("no runtime here")

    export.load_runtime = none
    try:
        _run_aside(export.main, line, base, expected=1)
    finally:
        export.load_runtime = load_runtime


def keep_scenes(line: Sequence[str], base: Path) -> None:
    """Draw once, and let the forked runs have the scenes."""
    make_demo_data.make_image = scene.make_image = functools.cache(scene.make_image)  # type: ignore[assignment]
    _run_aside(make_demo_data.main, line, base)


def _run_aside(main: Callable[[Sequence[str]], int], line: Sequence[str], base: Path, expected: int = 0) -> None:
    words = [word.replace(str(base / MADE_OUTPUT), str(base / "aside")) for word in line]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(words) == expected
    shutil.rmtree(base / "aside")


def _first_result(call: Callable[..., Any]) -> Callable[..., Any]:
    results: list[Any] = []

    @functools.wraps(call)
    def once(*args: Any, **kwargs: Any) -> Any:
        if not results:
            results.append(call(*args, **kwargs))
        return results[0]

    return once
