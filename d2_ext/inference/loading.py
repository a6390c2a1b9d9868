"""A trained detector for inference: its model with all weights, and the names of its classes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from d2_ext.checkpoint.safe import check_file, load_weights
from d2_ext.checkpoint.zoo import local_weights
from d2_ext.config.load import load_config
from d2_ext.data.parsing import read_lines
from d2_ext.errors import ConfigError
from d2_ext.layers.fold import fold_norms

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

logger = logging.getLogger(__name__)

DRAWING_KEYS = ("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id")


def detector_config(weights: str, config_file: str = "", overrides: Sequence[str] = ()) -> CfgNode:
    """The config of a trained detector; its data sets need not be there.

    Args:
        weights: checkpoint, or ``d2_ext://NAME``; ``MODEL.WEIGHTS`` of the config if empty.
        config_file: ``config.yaml`` beside the weights if empty.
        overrides: keys and values in turn.

    Raises:
        ConfigError: there is no config, it cannot be used, or nothing names the weights.
        CheckpointError: there is no such checkpoint.
    """
    if not config_file:
        if not weights:
            raise ConfigError("No detector is named. Give --weights (and --config-file, unless it lies beside them).")
        check_file(local_weights(weights))
        config_file = str(Path(local_weights(weights)).with_name("config.yaml"))
        if not Path(config_file).is_file():
            raise ConfigError(f"There is no {config_file}. Name the config of the weights with --config-file.")
    cfg = load_config(config_file, [*(["MODEL.WEIGHTS", weights] if weights else []), *overrides])
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError(f"{config_file} names no weights. Give those of a training with --weights.")
    return cfg


def load_detector(cfg: CfgNode, *, fold: bool = True) -> tuple[nn.Module, list[str]]:
    """Build the model of a config with ``MODEL.WEIGHTS``, read safely and completely, in evaluation mode.

    Args:
        cfg: the whole config; an empty ``MODEL.WEIGHTS`` gives random weights and a warning.
        fold: fold batch norms into the convolutions before them, which changes results by rounding only.

    Returns:
        The model, and the names of its classes as the checkpoint says them (empty if it does not).

    Raises:
        CheckpointError: if the weights cannot be read, or do not fill the model.
    """
    model = build_model(cfg).eval()
    names: Sequence[str] = ()
    if cfg.MODEL.WEIGHTS:
        names = load_weights(model, cfg.MODEL.WEIGHTS).get("class_names") or ()
    else:
        logger.warning("MODEL.WEIGHTS is empty: the detector has random weights.")
    model = fold_norms(model, channels_last=cfg.MODEL.CHANNELS_LAST) if fold else model
    return model, [str(name) for name in names]


def num_classes(cfg: CfgNode, model: nn.Module) -> int:
    """K, of any of Detectron2's detectors."""
    return getattr(model, "num_classes", cfg.MODEL.ROI_HEADS.NUM_CLASSES)


def class_metadata(cfg: CfgNode, count: int, from_checkpoint: Collection[str] = ()) -> Metadata:
    """Names of the classes a detector knows, for drawing and writing.

    They are looked for in the checkpoint, then in ``classes.txt`` (one a line) beside the weights, then in the
    metadata of the config's test and training sets. The ids and colors of a data set are taken with its names.
    A list of another length than K is passed over.

    Args:
        cfg: the whole config.
        count: K.
        from_checkpoint: as :func:`load_detector` gives them.

    Returns:
        ``thing_classes``, K names, missing if none is found; and of a registered data set that has just these,
        ``thing_colors`` and ``thing_dataset_id_to_contiguous_id``.
    """
    said = [list(from_checkpoint)]
    beside = Path(cfg.MODEL.WEIGHTS).with_name("classes.txt") if cfg.MODEL.WEIGHTS else None
    if beside is not None and "://" not in cfg.MODEL.WEIGHTS and beside.is_file():
        said.append([line.strip() for line in read_lines(beside) if line.strip()])
    names = next((names for names in said if len(names) == count), [])
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        known = MetadataCatalog.get(dataset) if dataset in MetadataCatalog.list() else Metadata()
        classes = list(known.get("thing_classes", []))
        if len(classes) == count and names in ([], classes):
            return Metadata().set(**{key: known.get(key) for key in DRAWING_KEYS if known.get(key) is not None})
    if not names:
        logger.warning("The names of the %d classes are not known: they are numbered from 0.", count)
    return Metadata().set(thing_classes=names) if names else Metadata()
