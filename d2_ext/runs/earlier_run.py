"""A new training never overwrites an earlier one: the earlier run's folder is renamed first."""

from __future__ import annotations

import contextlib
import glob
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import d2_ext
from d2_ext.engine.progress import go_on_without_a_log
from d2_ext.errors import ConfigError
from d2_ext.runs.lock import LOCK

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

__all__ = ["keep_earlier_run"]

logger = logging.getLogger(__name__)
CHECKPOINTS = ("last_checkpoint", "model_*.pth")


def keep_earlier_run(cfg: CfgNode, config_file: str, *, machine_rank: int = 0) -> Path | None:
    """Rename ``OUTPUT_DIR`` if it holds checkpoints of an earlier run, so that a new training finds its place empty.

    To be called once a machine, before the processes of the training are started: they meet before any of them writes.
    Only the machine of rank 0 renames, all others refuse what it refuses. The folder that ``OUTPUT_DIR`` really is, if
    it is a link, gets the first free name ``<folder>_earlier1``, ``_earlier2``, ... in one step. Without checkpoints
    nothing is done.

    Args:
        cfg: of a training that starts anew; its data sets can be loaded.
        config_file: of the run; may be empty.
        machine_rank: of this machine among those of the run.

    Returns:
        The new path of the earlier run's folder; None if nothing was renamed.

    Raises:
        ConfigError: something that this run needs, or another run, lies in the folder, or it cannot be renamed.
            Nothing has been touched.
    """
    if not cfg.OUTPUT_DIR or "://" in cfg.OUTPUT_DIR:
        return None
    folder = Path(cfg.OUTPUT_DIR).resolve()
    if not any(glob.glob(pattern, root_dir=folder) for pattern in CHECKPOINTS):
        return None
    for what, path in _needed(cfg, config_file):
        named = path.absolute().parent.resolve() / path.name  # the path itself, or what it points to
        if any(place.is_relative_to(folder) for place in (named, path.resolve())):
            raise ConfigError(_refusal(cfg, f"{what} ({path}) lies in it"))
    others = sorted(glob.glob("*/**/last_checkpoint", root_dir=folder, recursive=True))
    if others:
        raise ConfigError(_refusal(cfg, f"another run ({folder / os.path.dirname(others[0])}) lies in it"))
    if machine_rank != 0:
        return None
    for number in itertools.count(1):
        moved = folder.with_name(f"{folder.name}_earlier{number}")
        if not os.path.lexists(moved):
            break
    try:
        os.rename(folder, moved)
        try:
            folder.mkdir()  # where OUTPUT_DIR is a link, it would point to nothing
            with contextlib.suppress(FileNotFoundError):
                os.rename(moved / LOCK, folder / LOCK)  # of the run that starts now
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
            os.rename(moved, folder)
            raise
    except OSError as error:  # no permission, or a place where something is mounted
        raise ConfigError(_refusal(cfg, f"that failed: {error}")) from error
    setup_logger(cfg.OUTPUT_DIR, 0, name="d2_ext")  # the log begins with what follows
    go_on_without_a_log()
    logger.info(
        "%s held checkpoints of an earlier run. They were moved to %s; a new training starts in their place. "
        "(--resume goes on with a run instead.)",
        folder,
        moved,
    )
    return moved


def _needed(cfg: CfgNode, config_file: str) -> Iterator[tuple[str, Path]]:
    """What the run reads, or runs in, with the words that name it."""
    yield "the current folder", Path.cwd()
    yield "the program", Path(d2_ext.__file__).parent
    yield "Python", Path(sys.prefix)
    files = {
        "--config-file": config_file,
        "MODEL.WEIGHTS": cfg.MODEL.WEIGHTS,
        "DATASETS.FOLDER": cfg.DATASETS.FOLDER,
        "INPUT.ALBUMENTATIONS": cfg.INPUT.ALBUMENTATIONS,
    }
    yield from ((key, Path(path)) for key, path in files.items() if path and "://" not in path)
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        metadata = MetadataCatalog.get(name)
        places = {metadata.get(key) for key in ("json_file", "image_root")} - {None, ""}
        records = () if places else DatasetCatalog.get(name)
        if isinstance(records, Sequence):  # anything else would have to be gone through once
            places |= {os.path.dirname(record["file_name"]) for record in records if "file_name" in record}
        yield from ((f"data set '{name}'", Path(path)) for path in sorted(places))


def _refusal(cfg: CfgNode, reason: str) -> str:
    return (
        f"OUTPUT_DIR is {cfg.OUTPUT_DIR}, which holds checkpoints of an earlier run. It would be renamed to keep them, "
        f"but {reason}. Name another OUTPUT_DIR, or go on with the run with --resume."
    )
