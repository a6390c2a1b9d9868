"""The config of a run: that of its file and command line, with its data sets registered.

``--data FOLDER`` fills in the keys that depend on the data: ``DATASETS.FOLDER``, ``TRAIN``, ``TEST`` and ``CLASSES``,
every ``NUM_CLASSES``, ``INPUT.IGNORE_REGIONS`` (where the data has regions and the detector knows what to do with
them) and ``TEST.EXPECTED_RESULTS`` (emptied: they are those of the recipe's data). Keys on the command line win.
Without it ``DATASETS.FOLDER`` of the config is registered and no key is changed, so that the ``config.yaml`` of a run
repeats the run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from d2_ext.config.checks import value_of
from d2_ext.config.load import load_config, merge_config
from d2_ext.data.folder import OwnData, describe, register_folder
from d2_ext.errors import ConfigError, did_you_mean

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY

__all__ = ["load_run_config", "log_lr_scaling", "log_own_data", "register_data"]

logger = logging.getLogger(__name__)


def load_run_config(path: str | Path, overrides: Sequence[str] = (), *, data: str = "") -> CfgNode:
    """Load the config of a run and register its data sets.

    Args:
        path: of a YAML file; the defaults alone if empty.
        overrides: keys and values in turn.
        data: folder of a data set in any known format, see the module; may be empty.

    Raises:
        ConfigError: as of :func:`d2_ext.config.load.load_config`; for an unknown data set; or if the folder is missing,
            unused by ``DATASETS``, or does not fit the classes of the config.
        DatasetError: if the folder cannot be used.
    """
    return load_config(path, overrides, prepare=lambda cfg: register_data(cfg, data, given=overrides[::2]))


def register_data(cfg: CfgNode, folder: str = "", *, given: Collection[str] = ()) -> OwnData | None:
    """Register the data folder of a run, and check that all its data sets are registered.

    Args:
        cfg: not frozen, if there is a ``folder``, whose keys are then written.
        folder: of ``--data``; may be empty.
        given: keys that stay as they are.

    Returns:
        What was registered; None without a folder.

    Raises:
        ConfigError, DatasetError: see :func:`load_run_config`.
    """
    path = folder or cfg.DATASETS.FOLDER
    own = None
    if path:
        if not Path(path).is_dir():
            source = "--data" if folder else "DATASETS.FOLDER"
            raise ConfigError(
                f"{source}: no folder '{Path(path).absolute()}'. Expected a data set, see docs/your_data.md."
            )
        own = register_folder(
            path, data_format=cfg.DATASETS.FORMAT, share=cfg.DATASETS.HOLD_OUT, seed=cfg.DATASETS.HOLD_OUT_SEED
        )
        if folder:
            _write_keys(cfg, own, folder, given)
        _check_fit(cfg, own)
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        for name in value_of(cfg, key):
            if name not in DatasetCatalog:
                raise ConfigError(
                    f"{key}: nothing is registered as {name!r}. {did_you_mean(name, DatasetCatalog.list())} "
                    "Register a folder: see docs/datasets.md."
                )
    return own


def log_own_data(cfg: CfgNode) -> None:
    """Log what was recognized, and for how many epochs the schedule trains; nothing for a run without own data."""
    own = register_data(cfg)
    if own is None:
        return
    logger.info("Own data in %s", describe(own))
    images = sum(own.images.get(name, 0) for name in cfg.DATASETS.TRAIN)
    if images and not cfg.INPUT.TILES.ENABLED:
        seen = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
        logger.info(
            "SOLVER.MAX_ITER %d with SOLVER.IMS_PER_BATCH %d shows each of %d training images %.1f times",
            *(cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, images, seen / images),
        )


def log_lr_scaling(cfg: CfgNode, config_file: str) -> None:
    """Say what linear scaling makes of the learning rate where the batch is not that of the recipe; nothing is changed.

    Args:
        cfg: of the run.
        config_file: its recipe; nothing is said without one.
    """
    if not config_file:
        return
    recipe = merge_config(config_file)
    images, usual = (c.SOLVER.IMS_PER_BATCH * c.SOLVER.ACCUMULATE_BATCHES for c in (cfg, recipe))
    proposed = recipe.SOLVER.BASE_LR * images / usual
    if images != usual and not math.isclose(cfg.SOLVER.BASE_LR, proposed, rel_tol=0.01):
        logger.warning(
            "A step has %d images, in the recipe %d with SOLVER.BASE_LR %g: linear scaling proposes SOLVER.BASE_LR %g, "
            "and SOLVER.MAX_ITER %d for as many epochs. Nothing was changed: they are %g and %d.",
            *(images, usual, recipe.SOLVER.BASE_LR, proposed, round(recipe.SOLVER.MAX_ITER * usual / images)),
            *(cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER),
        )


def _write_keys(cfg: CfgNode, own: OwnData, folder: str, given: Collection[str]) -> None:
    values: dict[str, Any] = {
        "DATASETS.FOLDER": str(Path(folder).absolute()),
        "DATASETS.TRAIN": own.train,
        "DATASETS.TEST": own.test,
        "DATASETS.CLASSES": own.data.classes,
        "TEST.EXPECTED_RESULTS": [],
        **dict.fromkeys(_class_count_keys(cfg), len(own.data.classes)),
    }
    # Detectors of this project take rows of class -1, those of Detectron2 would fail on them.
    detector = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if own.data.has_ignore_regions and detector.__module__.startswith("d2_ext.") and not cfg.MODEL.MASK_ON:
        values["INPUT.IGNORE_REGIONS"] = True
    for key, value in values.items():
        if key not in given:
            section, _, leaf = key.rpartition(".")
            value_of(cfg, section)[leaf] = value


def _check_fit(cfg: CfgNode, own: OwnData) -> None:
    classes, saved = own.data.classes, tuple(cfg.DATASETS.CLASSES)
    if saved and saved != classes:
        raise ConfigError(
            f"DATASETS.CLASSES are {list(saved)}, but '{own.data.root}' has {list(classes)}: its classes have changed "
            "since the config was written. Restore the folder, or start anew with --data."
        )
    for key in _class_count_keys(cfg):
        if value_of(cfg, key) < len(classes):
            raise ConfigError(
                f"{key} is {value_of(cfg, key)}, but '{own.data.root}' has {len(classes)} classes. Set it to at least "
                "that, or leave it out of the command line."
            )
    if not set(own.images) & {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}:
        raise ConfigError(
            f"DATASETS.FOLDER is '{own.data.root}', but neither DATASETS.TRAIN nor TEST names a part of it: "
            f"{', '.join(own.images)}. Use --data, which sets them."
        )
    if cfg.MODEL.MASK_ON and not own.data.has_masks:
        raise ConfigError(
            f"MODEL.MASK_ON needs polygons, but the format {own.data.format} has boxes only. Choose a recipe of a "
            "detector of boxes, or set MODEL.MASK_ON False."
        )


def _class_count_keys(cfg: CfgNode) -> list[str]:
    """Every key of a detector's number of object classes; SEM_SEG_HEAD counts kinds of background, too."""
    nodes = {name: node for name, node in cfg.MODEL.items() if isinstance(node, CfgNode) and name != "SEM_SEG_HEAD"}
    return [f"MODEL.{name}.NUM_CLASSES" for name, node in nodes.items() if "NUM_CLASSES" in node]
