"""Runs a case in this process, as the command line does, and looks at what it leaves."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import train_net
from d2_ext.data import register_coco_folder, register_uavdt, register_visdrone
from d2_ext.data.formats.crowdhuman import register_crowdhuman
from d2_ext.errors import DatasetError
from d2_ext.runs.config import load_run_config
from d2_ext.runs.user_errors import explain

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from faults.case import Case

from helpers.scripts import ROOT, load_script

# Small networks, and data sets that are never read: configs are refused before that.
SMALL = ("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "INPUT.CROP.SIZE", "[96, 96]")
SMALLER = {
    "VoVNetV2": ("MODEL.VOVNET.CONV_BODY", "V-19-slim-dw-eSE"),
    "MogaNet": ("MODEL.MOGANET.ARCH", "xtiny"),
}


def base_arguments(base: str) -> list[str]:
    """A recipe of ours, made small."""
    return [*SMALL, *SMALLER.get(base.partition("/")[0], ())]


def run_train_net(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``train_net.py``."""
    return captured(lambda: train_net.main(list(arguments)))


def captured(call: Callable[[], int | None]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = call() or 0
        except SystemExit as stop:  # of argparse
            code = stop.code if isinstance(stop.code, int) else 1
    return code, out.getvalue(), err.getvalue()


def run_config(case: Case, folder: Path) -> tuple[int, str, str]:
    """A case of ``config_cases``; the run folder would be ``folder / "run"``."""
    output = ["OUTPUT_DIR", str(folder / "run")]
    if callable(case.given):
        case.given(folder)
        return run_train_net(["--config-file", str(folder / "recipe.yaml"), *output])
    config = ROOT / "configs" / case.base
    return run_train_net(["--config-file", str(config), *base_arguments(case.base), *case.given, *output])


def refusal_problems(case: Case, code: int, out: str, err: str, left: Sequence[str]) -> list[str]:
    """What is not as the table says; empty if all is."""
    message = err[err.rfind("error:") :] if "error:" in err else err
    problems = [f"the message lacks {part!r}" for part in case.says if part not in message]
    if code != case.code:
        problems.append(f"exit code {code}, not {case.code}")
    if "Traceback" in out + err:
        problems.append("there is a traceback")
    if message.strip().count("\n") > 3:
        problems.append("the message has more than four lines")
    if left:
        problems.append(f"it left {', '.join(left)}")
    return [*problems, f"message: {message.strip()[-800:]}"] if problems else []


def register_case(case: Case, folder: Path, name: str) -> None:
    """Make the files of a case and register them, as a user's script does."""
    data = folder / "data"
    case.given(data)
    if case.base == "visdrone":
        register_visdrone(name, data)
    elif case.base == "uavdt":
        register_uavdt(name, data, ["M0101"])
    elif case.base == "crowdhuman":
        register_crowdhuman(name, data / "annotation_train.odgt", data / "Images")
    else:
        register_coco_folder(name, data)


def run_data(case: Case, folder: Path, name: str) -> tuple[int, str, str]:
    """Register the data set of a case, and train on it."""

    def run() -> int:
        try:
            register_case(case, folder, name)
        except DatasetError as error:
            sys.stderr.write(f"error: {error}\n")
            return explain(error)[0] or 0
        classes = len(MetadataCatalog.get(name).thing_classes)
        config = ROOT / "configs/quickstart/fcos_R18_synthetic.yaml"
        data = ("DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", "()", "MODEL.FCOS.NUM_CLASSES", str(classes))
        return train_net.main(["--config-file", str(config), *SMALL, *data, "OUTPUT_DIR", str(folder / "run")])

    return captured(run)


def base_config() -> CfgNode:
    """The config of the model that the cases of checkpoints evaluate."""
    config = ROOT / "configs/quickstart/fcos_R18_synthetic.yaml"
    return load_run_config(config, SMALL)


def run_checkpoint(case: Case, folder: Path) -> tuple[int, str, str]:
    """Evaluate the checkpoint of a case; ``folder`` holds an honest one, and is the working directory."""
    case.given(folder)
    config = ROOT / "configs/quickstart/fcos_R18_synthetic.yaml"
    weights = ("MODEL.WEIGHTS", str(folder / case.where), "OUTPUT_DIR", str(folder / "run"))
    return run_train_net(["--config-file", str(config), "--eval-only", *SMALL, *weights])


def run_command(case: Case) -> tuple[int, str, str]:
    """A command line as it is, in the root of the project."""
    if case.base == "train_net.py":
        return run_train_net([*case.given])
    script = load_script(case.base)
    return captured(lambda: script.main([*case.given]))
