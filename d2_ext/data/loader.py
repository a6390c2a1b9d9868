"""The training loader: which records, in tiles or whole, through which augmentations and mapper."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from d2_ext.data.albumentations import load_augmentation
from d2_ext.data.crops import CropMapper, ObjectCrop, TileCrop
from d2_ext.data.mapper import CheckedMapper, IgnoreRegionMapper
from d2_ext.data.reproducible import reproducible_loader
from d2_ext.data.tiles import Records, tile_records

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, get_detection_dataset_dicts

__all__ = ["build_train_loader", "build_train_mapper", "build_validation_mapper", "training_records"]

_logger = logging.getLogger(__name__)


def build_train_loader(cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """Build the reproducible training loader with the mapper and the records of a config.

    Raises:
        ConfigError: for tiles or an albumentations file that cannot be used.
        DatasetError: if the batch cannot be shared by the processes.
    """
    mapper = build_train_mapper(cfg)
    return reproducible_loader(cfg, mapper, training_records(cfg) if cfg.INPUT.TILES.ENABLED else None)


def training_records(cfg: CfgNode) -> Records:
    """The records of ``DATASETS.TRAIN`` as the loader gives them to the mapper: filtered, and in tiles if asked for."""
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    if not cfg.INPUT.TILES.ENABLED:
        return records
    tiles = tile_records(cfg, records)
    _logger.info("INPUT.TILES: %d images are cut into %d tiles with objects", len(records), len(tiles))
    return tiles


def build_train_mapper(cfg: CfgNode) -> DatasetMapper:
    """Choose the mapper: ``INPUT.IGNORE_REGIONS``, ``INPUT.TILES`` and ``INPUT.ALBUMENTATIONS`` can stand together.

    The order of augmentations is: the tile, Detectron2's crop, scaling and flip, albumentations.
    """
    kind = IgnoreRegionMapper if cfg.INPUT.IGNORE_REGIONS else CheckedMapper
    arguments = kind.from_config(cfg, is_train=True)
    if cfg.INPUT.ALBUMENTATIONS:
        arguments["augmentations"].append(load_augmentation(cfg.INPUT.ALBUMENTATIONS, cfg.INPUT.FORMAT))
    augmentations = arguments["augmentations"]
    crop: TileCrop | ObjectCrop
    if cfg.INPUT.TILES.ENABLED:
        crop = TileCrop()
        augmentations.insert(0, crop)
    elif cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.OBJECT_SHARE:
        crop = ObjectCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP.OBJECT_SHARE)
        augmentations[0] = crop  # the stock mapper's crop comes first
    else:
        return kind(**arguments)
    return CropMapper(kind(**arguments), crop)


def build_validation_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper of training without its augmentations: images are as in testing, with all that the losses need."""
    kind = IgnoreRegionMapper if cfg.INPUT.IGNORE_REGIONS else CheckedMapper
    mapper = kind(**kind.from_config(cfg, is_train=False))
    mapper.is_train = True  # annotations stay
    return mapper
