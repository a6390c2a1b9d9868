"""A trained detector for inference: its model with all weights, and the names of its classes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.safe import SafeCheckpointer
from d2_ext.data.parsing import read_lines
from d2_ext.errors import CheckpointError
from d2_ext.layers.fold import fold_norms

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

logger = logging.getLogger(__name__)

DRAWING_KEYS = ("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id")


class _CompleteCheckpointer(SafeCheckpointer):
    """Refuses a file that leaves a part of the model random: in inference that is never meant."""

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        total = len(self.model.state_dict())
        wrong = [f"{key} {tuple(there)} instead of {tuple(here)}" for key, there, here in incompatible.incorrect_shapes]
        missing = [key for key in incompatible.missing_keys if not key.endswith("num_batches_tracked")]
        if wrong or missing:
            said = f"of wrong shape: {wrong[0]}" if wrong else f"not there: {missing[0]}"
            raise CheckpointError(
                f"The weights do not belong to this config: {len(wrong) + len(missing)} of {total} "
                f"tensors are missing or have another shape, first {said}. Give the config of the run that wrote "
                "them: config.yaml in its folder."
            )
        return incompatible


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
        loaded = _CompleteCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        names = loaded.get("class_names") or ()
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
    metadata of the config's test and training sets. The ids and colours of a data set are taken with its names.
    Names of another number than K are nobody's, and passed over.

    Args:
        cfg: the whole config.
        count: K.
        from_checkpoint: as :func:`load_detector` gives them.

    Returns:
        ``thing_classes``, K names, missing if nobody knows them; and of a registered data set that has just these,
        ``thing_colors`` and ``thing_dataset_id_to_contiguous_id``.
    """
    said = [list(from_checkpoint), _names_beside(cfg.MODEL.WEIGHTS)]
    names = next((names for names in said if len(names) == count), [])
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        known = MetadataCatalog.get(dataset) if dataset in MetadataCatalog.list() else Metadata()
        classes = list(known.get("thing_classes", []))
        if len(classes) == count and names in ([], classes):
            return Metadata().set(**{key: known.get(key) for key in DRAWING_KEYS if known.get(key) is not None})
    if not names:
        logger.warning("The names of the %d classes are not known: they are numbered from 0.", count)
    return Metadata().set(thing_classes=names) if names else Metadata()


def _names_beside(weights: str) -> list[str]:
    path = Path(weights).with_name("classes.txt") if weights and "://" not in weights else None
    if path is None or not path.is_file():
        return []
    return [line.strip() for line in read_lines(path) if line.strip()]
