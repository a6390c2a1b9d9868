"""``--data FOLDER``: from a folder to the config keys that depend on the data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from d2_ext.data.folder import OwnData, describe, register_folder
from d2_ext.errors import ConfigError

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

__all__ = ["apply_data_folder", "log_own_data"]

logger = logging.getLogger(__name__)


def apply_data_folder(cfg: CfgNode, folder: str | None, options: list[str]) -> OwnData | None:
    """Register the data folder of a run and fill in what follows from it.

    With a ``folder`` from the command line, ``DATASETS.FOLDER``, ``TRAIN``, ``TEST`` and ``CLASSES``, every
    ``NUM_CLASSES``, ``INPUT.IGNORE_REGIONS`` (where the data has regions and the detector heeds them) and
    ``TEST.EXPECTED_RESULTS`` (emptied: it spoke of the recipe's data) are set, except keys among ``options``. Without,
    ``DATASETS.FOLDER`` of the config is registered and nothing else is changed, so the ``config.yaml`` of a run repeats
    the run.

    Args:
        cfg: merged, not frozen; changed in place.
        folder: of ``--data``, or nothing.
        options: keys and values from the command line, which win.

    Returns:
        What is registered; None for a run without such a folder.

    Raises:
        ConfigError: if the folder is missing, unused by ``DATASETS``, or does not fit the classes of the config.
        DatasetError: if the folder cannot be used.
    """
    path = folder or cfg.DATASETS.FOLDER
    if not path:
        return None
    if not Path(path).is_dir():
        source = "--data" if folder else "DATASETS.FOLDER"
        raise ConfigError(f"{source}: no folder '{Path(path).absolute()}'. Expected a data set, see docs/your_data.md.")
    if not 0 < cfg.DATASETS.HOLD_OUT < 1:
        raise ConfigError(f"DATASETS.HOLD_OUT is {cfg.DATASETS.HOLD_OUT}. Expected a share between 0 and 1.")
    own = register_folder(
        path, data_format=cfg.DATASETS.FORMAT, share=cfg.DATASETS.HOLD_OUT, seed=cfg.DATASETS.HOLD_OUT_SEED
    )
    if folder:
        _write_keys(cfg, own, folder, given=set(options[::2]))
    _check_fit(cfg, own)
    return own


def log_own_data(cfg: CfgNode) -> None:
    """Log what was recognised, and for how many epochs the schedule trains; nothing for a run without own data."""
    if not cfg.DATASETS.FOLDER:
        return
    own = apply_data_folder(cfg, None, [])
    assert own is not None, "DATASETS.FOLDER is set"
    logger.info("Own data in %s", describe(own))
    images = sum(own.images.get(name, 0) for name in cfg.DATASETS.TRAIN)
    if images and not cfg.INPUT.TILES.ENABLED:
        seen = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
        logger.info(
            "SOLVER.MAX_ITER %d with SOLVER.IMS_PER_BATCH %d shows each of %d training images %.1f times",
            cfg.SOLVER.MAX_ITER,
            cfg.SOLVER.IMS_PER_BATCH,
            images,
            seen / images,
        )


def _write_keys(cfg: CfgNode, own: OwnData, folder: str, given: set[str]) -> None:
    values = {
        "DATASETS.FOLDER": str(Path(folder).absolute()),
        "DATASETS.TRAIN": own.train,
        "DATASETS.TEST": own.test,
        "DATASETS.CLASSES": own.data.classes,
        "TEST.EXPECTED_RESULTS": [],
        **{key: len(own.data.classes) for key in _class_count_keys(cfg)},
    }
    if own.data.has_ignore_regions and _heeds_regions(cfg):
        values["INPUT.IGNORE_REGIONS"] = True
    for key, value in values.items():
        if key not in given:
            node, leaf = _node(cfg, key)
            node[leaf] = value


def _class_count_keys(cfg: CfgNode) -> Iterator[str]:
    """Every key of a detector's number of object classes."""
    for name, node in cfg.MODEL.items():
        # SEM_SEG_HEAD counts kinds of background, too, and no data set here has such labels.
        if isinstance(node, CfgNode) and "NUM_CLASSES" in node and name != "SEM_SEG_HEAD":
            yield f"MODEL.{name}.NUM_CLASSES"


def _node(cfg: CfgNode, key: str) -> tuple[CfgNode, str]:
    *path, leaf = key.split(".")
    for part in path:
        cfg = cfg[part]
    return cfg, leaf


def _heeds_regions(cfg: CfgNode) -> bool:
    """Whether the detector takes rows of class -1: those of this project do, Detectron2's own would fail."""
    name = cfg.MODEL.META_ARCHITECTURE
    known = name in META_ARCH_REGISTRY
    return known and META_ARCH_REGISTRY.get(name).__module__.startswith("d2_ext.") and not cfg.MODEL.MASK_ON


def _check_fit(cfg: CfgNode, own: OwnData) -> None:
    classes, saved = own.data.classes, tuple(cfg.DATASETS.CLASSES)
    if saved and saved != classes:
        raise ConfigError(
            f"DATASETS.CLASSES are {list(saved)}, but '{own.data.root}' has {list(classes)}: its classes have changed "
            "since the config was written. Restore the folder, or start anew with --data."
        )
    for key in _class_count_keys(cfg):
        node, leaf = _node(cfg, key)
        if node[leaf] < len(classes):
            raise ConfigError(
                f"{key} is {node[leaf]}, but '{own.data.root}' has {len(classes)} classes. Set it to at least that, or "
                "leave it out of the command line."
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
