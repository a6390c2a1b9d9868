"""The training loader: which records, in tiles or whole, through which augmentations and mapper."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from d2_ext.data.albumentations import load_augmentation
from d2_ext.data.mapper import CheckedMapper, IgnoreRegionMapper
from d2_ext.data.reproducible import reproducible_loader
from d2_ext.data.tiles import Records, tile_records

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data import transforms as T

__all__ = ["TileCrop", "TileMapper", "build_train_loader", "build_train_mapper", "training_records"]

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
    if not cfg.INPUT.TILES.ENABLED:
        return kind(**arguments)
    crop = TileCrop()
    arguments["augmentations"].insert(0, crop)
    return TileMapper(kind(**arguments), crop)


class TileCrop(T.Augmentation):
    """Crops to :attr:`tile`, which is set for each record; the whole image if it is None."""

    def __init__(self) -> None:
        self.tile: tuple[int, int, int, int] | None = None

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The crop, for an (H, W, C) image."""
        return T.NoOpTransform() if self.tile is None else T.CropTransform(*self.tile)

    def __repr__(self) -> str:
        return "TileCrop()"


class TileMapper:
    """A mapper whose first augmentation crops to the record's ``tile``.

    Args:
        mapper: does the work; its first augmentation is ``crop``.
        crop: gets each record's tile. A mapper serves one record at a time, in loader processes as well.
    """

    def __init__(self, mapper: DatasetMapper, crop: TileCrop) -> None:
        self.mapper = mapper
        self.crop = crop

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one record; ``height`` and ``width`` of the result are those of the tile."""
        x, y, width, height = record["tile"]
        self.crop.tile = (x, y, width, height)
        mapped = self.mapper({key: value for key, value in record.items() if key != "tile"})
        return {**mapped, "width": width, "height": height}
