"""Everything that can be checked before a run leaves its first trace: values, model, data and weights."""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.checkpoint.safe import SafeCheckpointer, check_file
from d2_ext.config.checks import DETECTOR_SECTIONS
from d2_ext.data.records import check_records, load_records
from d2_ext.engine.optimizer import build_optimizer
from d2_ext.engine.wandb_writer import import_wandb
from d2_ext.errors import ConfigError, DatasetError

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

__all__ = ["check_run"]


def check_run(cfg: CfgNode, *, processes: int = 1, eval_only: bool = False, resume: bool = False) -> None:
    """Build the model once on the CPU, load its weights, load the data sets once, and look at the images.

    Args:
        cfg: values and names are checked already.
        processes: of the whole run, over all machines.
        eval_only: the training set plays no role, and every weight must be in the file.
        resume: the last checkpoint may replace ``MODEL.WEIGHTS``.

    Raises:
        ConfigError: the model cannot be built, or does not fit the data or the processes; a package is missing.
        DatasetError: a data set or an image cannot be used.
        CheckpointError: the weights cannot be read, or do not fit the model.
    """
    if not eval_only and cfg.SOLVER.IMS_PER_BATCH % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which cannot be divided among {processes} processes "
            f"(--num-gpus x --num-machines). Set it to a multiple of {processes}."
        )
    if eval_only and not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty, so --eval-only has nothing to evaluate. Name a data set.")
    if not eval_only and not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty, so there is nothing to train on. Name a data set.")
    if cfg.WANDB.ENABLED and not eval_only:
        import_wandb()
    if not resume:
        check_file(cfg.MODEL.WEIGHTS)
    model = check_model(cfg)
    if not eval_only:
        build_optimizer(cfg, model)
    if cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS and not resume:
        SafeCheckpointer(model, save_to_disk=False, whole=eval_only).load(cfg.MODEL.WEIGHTS)
    for name in dict.fromkeys([*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST]):
        check_dataset(cfg, name, trains=name in cfg.DATASETS.TRAIN and not eval_only)


def check_model(cfg: CfgNode) -> nn.Module:
    """Build the model on the CPU.

    Raises:
        ConfigError: it cannot be built.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        return build_model(cfg)
    except ConfigError:
        raise
    except NotImplementedError:  # of the stand-in, which says what it lacks
        raise
    except Exception as error:  # whatever Detectron2 and torch raise for values that do not fit together
        raise ConfigError(
            f"The model {cfg.MODEL.META_ARCHITECTURE} on {cfg.MODEL.BACKBONE.NAME} cannot be built: "
            f"{type(error).__name__}: {error}. Check the keys below MODEL."
        ) from error


def check_dataset(cfg: CfgNode, name: str, *, trains: bool) -> None:
    """Load a data set, check its records, and compare its classes with the model's.

    Raises:
        ConfigError: the model has another number of classes.
        DatasetError: the data set cannot be used.
    """
    records = load_records(name)
    if not isinstance(records, Sequence):
        return  # a torch data set or an iterable, which must be taken at its word
    classes = MetadataCatalog.get(name).get("thing_classes")
    check_records(name, records, len(classes) if classes else None)
    section = DETECTOR_SECTIONS.get(cfg.MODEL.META_ARCHITECTURE)
    if section is not None and classes and len(classes) != cfg.MODEL[section].NUM_CLASSES:
        key = f"MODEL.{section}.NUM_CLASSES"
        shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        raise ConfigError(
            f"{key} is {cfg.MODEL[section].NUM_CLASSES}, but data set '{name}' has {len(classes)} classes: {shown}. "
            f"Set {key} to {len(classes)}."
        )
    if trains and not any(record.get("annotations") for record in records) and all("annotations" in r for r in records):
        raise DatasetError(f"Data set '{name}' has no box at all, so there is nothing to learn. Add annotations.")
