"""Everything that can be checked before a run leaves its first trace: values, model, data and weights."""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from d2_ext.checkpoint.safe import SafeCheckpointer, check_file
from d2_ext.checkpoint.zoo import local_weights
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

logger = logging.getLogger("d2_ext")
MANY_WORKERS = 4  # processes that load data, for each core


def check_run(cfg: CfgNode, *, processes: int = 1, eval_only: bool = False, resume: bool = False) -> None:
    """Build the model once on the CPU, load its weights, load the data sets once, and look at the images.

    Args:
        cfg: values and names are checked already.
        processes: of the whole run, over all machines.
        eval_only: the training set plays no role, and every weight must be in the file.
        resume: the last checkpoint may replace ``MODEL.WEIGHTS``.

    Raises:
        ConfigError: ``OUTPUT_DIR`` cannot be written; the model cannot be built, or does not fit the data or the
            processes; a package is missing.
        DatasetError: a data set or an image cannot be used.
        CheckpointError: the weights cannot be read, or do not fit the model.
    """
    check_output_dir(cfg.OUTPUT_DIR)
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
    if cfg.MODEL.WEIGHTS and "://" not in local_weights(cfg.MODEL.WEIGHTS) and not resume:
        SafeCheckpointer(model, save_to_disk=False, whole=eval_only).load(cfg.MODEL.WEIGHTS)
    images = {}
    for name in dict.fromkeys([*(() if eval_only else cfg.DATASETS.TRAIN), *cfg.DATASETS.TEST]):
        images[name] = check_dataset(cfg, name, trains=name in cfg.DATASETS.TRAIN and not eval_only)
    # What works, but hardly as it was meant.
    training = 0 if eval_only else sum(images[name] for name in cfg.DATASETS.TRAIN)
    if training < cfg.SOLVER.IMS_PER_BATCH and not eval_only:
        logger.warning(
            "SOLVER.IMS_PER_BATCH is %d, but DATASETS.TRAIN has %g images: a batch holds some of them several times.",
            *(cfg.SOLVER.IMS_PER_BATCH, training),
        )
    if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER and not eval_only:
        logger.warning(
            "SOLVER.WARMUP_ITERS is %d and SOLVER.MAX_ITER %d: the learning rate never reaches SOLVER.BASE_LR.",
            *(cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER),
        )
    workers, cores = cfg.DATALOADER.NUM_WORKERS * processes, os.cpu_count() or 1
    if workers > MANY_WORKERS * cores:
        logger.warning(
            "DATALOADER.NUM_WORKERS is %d, which makes %d processes on %d cores: they cost memory and gain nothing. "
            "Set it to the cores that each of the %d training processes can have.",
            *(cfg.DATALOADER.NUM_WORKERS, workers, cores, processes),
        )


def check_output_dir(output_dir: str) -> None:
    """Check that a run folder is there and can be written, or can be made; nothing is made.

    Raises:
        ConfigError: it cannot.
    """
    if not output_dir or "://" in output_dir:
        return
    folder, problem = Path(output_dir).absolute(), ""
    for place in (folder, *folder.parents):
        try:
            is_folder = stat.S_ISDIR(os.stat(place).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            if not os.path.islink(place):
                continue  # it will be made in one of those above
            problem = f"{place} is a link to nothing"
        except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
            problem = getattr(error, "strerror", None) or str(error)
        else:
            writable = os.access(place, os.W_OK | os.X_OK)
            problem = f"{place} is no folder" if not is_folder else "" if writable else f"{place} cannot be written"
        break
    if problem:
        raise ConfigError(
            f"OUTPUT_DIR is {output_dir[:200]!r}, but {problem}. Name a folder that can be made or written."
        )


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


def check_dataset(cfg: CfgNode, name: str, *, trains: bool) -> float:
    """Load a data set, check its records, and compare its classes with the model's.

    Returns:
        How many images it has; infinity if only going through it would tell.

    Raises:
        ConfigError: the model has another number of classes.
        DatasetError: the data set cannot be used.
    """
    records = load_records(name)
    if not isinstance(records, Sequence):
        return math.inf  # a torch data set or an iterable, which must be taken at its word
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
    return len(records)
