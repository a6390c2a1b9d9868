"""From a command line to a checked, frozen config and a prepared run folder."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from d2_ext.config import add_d2_ext_config
from d2_ext.config.checks import check_values
from d2_ext.engine.own_data import apply_data_folder, log_own_data
from d2_ext.engine.progress import log_memory_of_the_process
from d2_ext.engine.user_errors import log_user_errors_in_one_line
from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.files import read_yaml
from d2_ext.utils.devices import default_device
from d2_ext.utils.options import suggest_options

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser, default_setup
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

_TYPE_MISMATCH = re.compile(
    r"Type mismatch \(<class '(?:.*\.)?(.*?)'> vs\. <class '(?:.*\.)?(.*?)'>\) with values \(.* vs\. (.*)\) "
    r"for config key: (.*)",
    re.DOTALL,
)
EXAMPLES = """examples:
  train on generated data, CPU, some minutes:
    python train_net.py --config-file configs/quickstart/retinanet_ceasc_R18_synthetic.yaml
  train on your own folder (COCO json, YOLO, Pascal VOC, VisDrone, UAVDT, CrowdHuman; docs/your_data.md):
    python train_net.py --config-file configs/quickstart/fcos_R18_synthetic.yaml --data datasets/demo
  continue an interrupted run from its last checkpoint:
    python train_net.py --config-file configs/VisDrone/retinanet_ceasc_R18_FPN512.yaml --num-gpus 8 --resume
  try a recipe before a long run: everything once, and what it will cost:
    python train_net.py --config-file configs/quickstart/fcos_R18_synthetic.yaml --dry-run
  evaluate a checkpoint, other settings on the command line:
    python train_net.py --config-file configs/VisDrone/retinanet_ceasc_R18_FPN512.yaml --eval-only \\
        MODEL.WEIGHTS output/visdrone_retinanet_ceasc_R18_FPN512/model_final.pth TEST.DETECTIONS_PER_IMAGE 100
"""


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command line, with examples of this project."""
    parser = default_argument_parser(epilog=EXAMPLES)
    parser.description = "Train, resume or evaluate a detector. --num-gpus counts processes where there is no GPU."
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        default="",
        help="own data set: its format, classes and splits are recognised and set; keys given as KEY VALUE win",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, make two steps, evaluate three images, print the cost of the run, leave nothing",
    )
    instead.add_argument(
        "--print-config", action="store_true", help="print all keys as YAML, with a comment where one was changed"
    )
    return suggest_options(parser)


def build_config(args: argparse.Namespace, *, needs_data: bool = True) -> CfgNode:
    """Merge defaults, file and command line into a frozen, checked config.

    Args:
        args: with ``config_file`` (may be empty), ``opts``, a list of alternating keys and values, and perhaps
            ``data``, see :func:`d2_ext.engine.own_data.apply_data_folder`.
        needs_data: whether the data sets and the data folder of the config must be there; not for other images.

    Raises:
        ConfigError: for a missing or malformed file, an unknown key, a value of the wrong type, or an unknown data
            set, model or backbone.
        DatasetError: for a data folder that cannot be used.
    """
    cfg = config_of_file(args.config_file)
    _merge_options(cfg, args.opts or [])
    if cfg.MODEL.DEVICE == "cuda" and default_device() == "cpu":
        logging.getLogger("d2_ext").warning("MODEL.DEVICE is 'cuda', but no GPU is usable here: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    if needs_data:
        apply_data_folder(cfg, getattr(args, "data", ""), args.opts or [])
    check_config(cfg, needs_data=needs_data)
    cfg.freeze()
    return cfg


def config_of_file(config_file: str) -> CfgNode:
    """The defaults with a config file merged, not checked and not frozen.

    Args:
        config_file: path; the defaults alone if empty.

    Raises:
        ConfigError: for a missing or malformed file, an unknown key or a value of the wrong type.
    """
    cfg = get_cfg()
    add_d2_ext_config(cfg)
    if config_file:
        _merge_file(cfg, config_file)
    return cfg


def setup(args: argparse.Namespace) -> CfgNode:
    """Build the config, make the run folder, start the loggers and seed the generators, as Detectron2 does."""
    cfg = build_config(args)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="d2_ext")
    log_own_data(cfg)
    log_user_errors_in_one_line()
    log_memory_of_the_process()
    return cfg


def check_config(cfg: CfgNode, *, needs_data: bool = True) -> None:
    """Refuse names that nothing is registered under, and values that cannot work, before anything is built.

    Raises:
        ConfigError: naming the key, the value and the nearest known names, or what was expected.
    """
    for key in ("TRAIN", "TEST") if needs_data else ():
        for name in cfg.DATASETS[key]:
            _check_name(f"DATASETS.{key}", name, DatasetCatalog.list(), "Register a folder: see docs/datasets.md.")
    _check_name("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, [n for n, _ in META_ARCH_REGISTRY])
    _check_name("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, [n for n, _ in BACKBONE_REGISTRY])
    check_values(cfg)


def _check_name(key: str, name: str, known: list[str], advice: str = "") -> None:
    if name not in known:
        raise ConfigError(f"{key}: nothing is registered as {name!r}. {did_you_mean(name, known)} {advice}".rstrip())


def _merge_file(cfg: CfgNode, config_file: str) -> None:
    path = Path(config_file)
    if "://" not in config_file and not path.is_file():
        folder = path.parent
        near = did_you_mean(path.name, [p.name for p in folder.glob("*.yaml")]) if folder.is_dir() else ""
        where = "" if folder.is_dir() else f" (there is no folder {folder.resolve()})"
        raise ConfigError(f"--config-file: no file {path.resolve()}{where}. {near}".rstrip())
    try:
        if "://" not in config_file:
            _check_yaml(path, ())
        # Strictly safe YAML: a tag that would run Python is an error, with either Detectron2.
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except KeyError as error:
        raise ConfigError(f"{path}: {_unknown_key(cfg, str(error.args[0]))}") from error
    except ConfigError:
        raise
    except Exception as error:  # of yacs and Detectron2, which assert and raise whatever comes first
        raise ConfigError(f"{path}: {_mismatch(error)}") from error


def _check_yaml(path: Path, below: tuple[Path, ...]) -> None:
    """Check that a file and the files that it is based on hold keys, before Detectron2 merges them.

    Args:
        path: of the file.
        below: the files that are based on it.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ConfigError(f"{path} {found}; expected keys and values, such as 'SOLVER: {{MAX_ITER: 1000}}'.")
    if "_BASE_" not in content:
        return
    base = content["_BASE_"]
    if not isinstance(base, str):
        raise ConfigError(f"{path}: _BASE_ is {base!r}; expected the path of one file.")
    base_path = path.parent / Path(base).expanduser()
    if "://" in base:
        return
    if not base_path.is_file():
        raise ConfigError(f"{path}: _BASE_ is {base!r}, but there is no file {base_path.resolve()}.")
    if base_path.resolve() in {p.resolve() for p in (path, *below)}:
        raise ConfigError(f"{path}: _BASE_ is {base!r}: these files are based on each other. Take one line out.")
    _check_yaml(base_path, (path, *below))


def _mismatch(error: Exception) -> str:
    """The message of an error, without the whole section that yacs prints where a section was expected."""
    found = _TYPE_MISMATCH.match(str(error))
    if found is None:
        return str(error).partition("\n")[0]
    old, new, value, key = found.groups()
    return f"Type mismatch for config key {key}: {value} is a {new}, expected a {old}."


def _merge_options(cfg: CfgNode, options: list[str]) -> None:
    if len(options) % 2:
        raise ConfigError(
            f"Options come as pairs of KEY VALUE, but {len(options)} words were given: {' '.join(options)}. "
            "Write for example: SOLVER.BASE_LR 0.01 (flags such as --resume go before them)."
        )
    known = set(_leaf_keys(cfg))
    for key in options[::2]:
        if key not in known:
            raise ConfigError(_unknown_key(cfg, key))
    try:
        cfg.merge_from_list(options)
    except Exception as error:  # literals that Python's parser refuses raise more than ValueError
        raise ConfigError(f"Command line: {_mismatch(error)}") from error


def _unknown_key(cfg: CfgNode, text: str) -> str:
    key = text.removeprefix("Non-existent config key: ")
    return f"unknown config key {key!r}. {did_you_mean(key, _leaf_keys(cfg))}".rstrip()


def _leaf_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
