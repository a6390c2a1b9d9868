"""Config keys of a user's own data: the folder, tiles of large images, albumentations."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_data_config(cfg: CfgNode) -> None:
    """Add the keys that ``train_net.py --data`` writes and that the training mapper reads."""
    # Folder of a data set in any format of d2_ext.data.formats; its splits are registered as own_<folder>_<split>.
    # `--data FOLDER` sets it, and with it DATASETS.TRAIN, TEST, CLASSES and every NUM_CLASSES.
    cfg.DATASETS.FOLDER = ""
    # One of coco, yolo, voc, visdrone, uavdt, crowdhuman where the folder could be several; "" recognizes it.
    cfg.DATASETS.FORMAT = ""
    # Class names of the folder in the model's order. A run refuses a folder whose classes have changed since.
    cfg.DATASETS.CLASSES = ()
    # Share of the images that is held out for evaluation where the folder has one split only, in (0, 1).
    cfg.DATASETS.HOLD_OUT = 0.2
    # Another seed holds out other images. It does not depend on SEED.
    cfg.DATASETS.HOLD_OUT_SEED = 0

    cfg.INPUT.TILES = CfgNode()
    # Train on overlapping tiles instead of whole images; every epoch shows every tile.
    cfg.INPUT.TILES.ENABLED = False
    # Height and width of a tile, px of the file's image. Images that are not larger stay whole.
    cfg.INPUT.TILES.SIZE = [1024, 1024]
    # Least overlap of neighbours, as a share of the tile's sides, in [0, 1): wider than the largest object of interest.
    cfg.INPUT.TILES.OVERLAP = 0.2
    # A box stays an object if at least this share of its area lies in the tile. Less becomes an ignore region.
    cfg.INPUT.TILES.MIN_VISIBLE = 0.4

    # YAML file with a list of albumentations' transforms by name, applied in training after Detectron2's own.
    cfg.INPUT.ALBUMENTATIONS = ""
