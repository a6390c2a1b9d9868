"""Make the synthetic data known to Detectron2 under its names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from d2_ext.synthetic.config import (
    CLASS_COLORS,
    CLASSES,
    SPLITS,
    SyntheticConfig,
    default_root,
    split_folder,
)
from d2_ext.synthetic.writer import generate

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json


def register_synthetic_drone(
    root: str | os.PathLike[str] | None = None,
    *,
    config: SyntheticConfig | None = None,
    name: str = "synthetic_drone",
) -> None:
    """Register ``<name>_train`` and ``<name>_val``; nothing is drawn until one of them is loaded.

    Args:
        root: data root; by default ``$DETECTRON2_DATASETS`` as it is now, else ``./datasets``.
        config: recipe; by default 500 and 100 images.
        name: first part of the names.
    """
    root = default_root() if root is None else Path(root)
    config = config or SyntheticConfig()
    for split in SPLITS:
        full_name = f"{name}_{split}"
        folder = split_folder(config, root, split)
        DatasetCatalog.register(full_name, lambda s=split, n=full_name: load_synthetic_drone(s, root, config, n))
        MetadataCatalog.get(full_name).set(
            json_file=str(folder / f"{split}.json"),
            image_root=str(folder / "images"),
            evaluator_type="coco",
            thing_classes=list(CLASSES),
            thing_colors=list(CLASS_COLORS),
        )


def load_synthetic_drone(
    split: str,
    root: str | os.PathLike[str] | None = None,
    config: SyntheticConfig | None = None,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Load a split in Detectron2's format, and draw it first if it is not there.

    Args:
        split: "train" or "val".
        root: data root; by default ``$DETECTRON2_DATASETS``, else ``./datasets``.
        config: recipe.
        name: registered name whose metadata are filled; None keeps COCO's category ids (from 1).

    Returns:
        One dict an image: file_name, height, width, image_id, annotations (XYWH_ABS px).
    """
    root = default_root() if root is None else root
    folder = generate(config or SyntheticConfig(), root, splits=(split,))[split]
    return load_coco_json(str(folder / f"{split}.json"), str(folder / "images"), name)
