"""A detector for any number of images: batched, streaming, with the numbers of ``DefaultPredictor``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from d2_ext.errors import ConfigError, DatasetError
from d2_ext.images import read_image
from d2_ext.inference.batches import ImageBatches
from d2_ext.inference.loading import class_metadata, load_detector, num_classes
from d2_ext.inference.tiled import TiledDetector
from d2_ext.utils.devices import cpu_computes_bfloat16

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

logger = logging.getLogger(__name__)

Image = np.ndarray | str | os.PathLike[str]


class BatchPredictor:
    """Detects on lists and streams of images.

    Threads may share one: each gets the results it would get alone. A process that was forked from the one that made
    it computes in one thread (``torch.set_num_threads(1)``), or makes its own after a start by ``spawn``.

    Args:
        cfg: a whole config; ``MODEL.WEIGHTS``, ``MODEL.DEVICE``, ``INPUT.FORMAT``, ``TEST.TILE`` and the sizes for
            testing are used.
        batch_size: images (or tiles of one) computed at a time; no more of them are held in memory.
        score_thresh: detections below it are dropped; None keeps what the config's model gives.
        fold: fold batch norms into convolutions: faster, the same results to rounding.
        bfloat16: compute in bfloat16: faster where the hardware has it, results differ in the third digit.

    Attributes:
        model: the detector, in evaluation mode.
        num_classes: K.
        class_names: names of the K classes; empty if neither checkpoint, run folder nor data set say them.
        best_score: the highest score of all images so far, kept or not; 0 before the first detection.
        num_tiles: tiles of all images so far; 0 without ``TEST.TILE``.
        num_skipped_tiles: those of them that ``TEST.TILE.SELECT`` did not choose.
        metadata: the same as ``thing_classes``, with ``thing_colors`` where known: what :func:`draw_detections` needs.

    Raises:
        ConfigError: a batch size below 1, a channel order other than RGB and BGR, or a value of ``TEST.TILE`` out of
            its range.
        CheckpointError: weights that cannot be read or do not fill the model.

    Example::

        predictor = BatchPredictor(cfg, batch_size=8)
        for instances in predictor.stream(sorted(Path("images").glob("*.jpg"))):
            print(instances.pred_boxes, instances.scores, instances.pred_classes)
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        batch_size: int = 4,
        score_thresh: float | None = None,
        fold: bool = True,
        bfloat16: bool = False,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}. Expected a whole number, 1 or more.")
        if score_thresh is not None and not 0 <= score_thresh <= 1:
            raise ConfigError(f"score_thresh is {score_thresh}. Expected a number from 0 to 1, or None.")
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise ConfigError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}. Expected BGR or RGB.")
        if bfloat16 and cfg.MODEL.DEVICE == "cpu" and not cpu_computes_bfloat16():
            logger.warning("bfloat16: this CPU has no instructions for it, so that it will be slower than float32.")
        self._process = os.getpid()
        self.cfg = cfg.clone()
        self.batch_size = batch_size
        self.score_thresh = score_thresh
        self.best_score = 0.0
        self.num_tiles = self.num_skipped_tiles = 0
        self.model, names = load_detector(self.cfg, fold=fold)
        self.num_classes = num_classes(self.cfg, self.model)
        self.metadata = class_metadata(self.cfg, self.num_classes, names)
        self.class_names = list(self.metadata.get("thing_classes", []))
        # Let the model give all that is asked for; raising its threshold would not be the same as dropping results.
        own = getattr(self.model, "test_score_thresh", None)
        if score_thresh is not None and own is not None and score_thresh < own:
            logger.info("The model's own score threshold %g is lowered to %g.", own, score_thresh)
            self.model.test_score_thresh = score_thresh
        self._batches = ImageBatches(self.model, self.cfg, bfloat16=bfloat16)
        self._tiled: TiledDetector | None = None
        if cfg.TEST.TILE.SIZE:
            self._tiled = TiledDetector(self.model, self.cfg, batch_size=batch_size, bfloat16=bfloat16)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _process=os.getpid())  # sent to another process: its threads are its own

    def __call__(self, images: Iterable[Image]) -> list[Instances]:
        """Detect on some images; see :meth:`stream`."""
        return list(self.stream(images))

    def stream(self, images: Iterable[Image]) -> Iterator[Instances]:
        """Detect on any number of images, ``batch_size`` at a time.

        Args:
            images: (H, W, 3) uint8 BGR arrays of any sizes, or paths; a list or an iterator.

        Yields:
            Per image, in order, ``Instances`` on the CPU with ``pred_boxes`` (XYXY px of the image as given; of a
            file, after its EXIF rotation), ``scores`` in [0, 1] and ``pred_classes`` in 0..K-1, best first.

        Raises:
            DatasetError: for a file that cannot be read, and an array that is no image.
            ConfigError: in a process that was forked from that of the predictor, and has more than one thread.
        """
        if isinstance(images, (np.ndarray, str, os.PathLike)):
            raise DatasetError("Expected a list or iterator of images, got a single one: write [image].")
        iterator = iter(images)
        while batch := list(islice(iterator, self.batch_size)):
            yield from self.predict_batch([_as_array(image) for image in batch])

    def predict_batch(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detect on (H, W, 3) uint8 BGR arrays, all in one batch; see :meth:`stream` for the result and its errors."""
        self._refuse_to_hang()
        images = self._in_model_order([_checked(image) for image in images])
        if self._tiled is None:
            found = self._batches(images)
        else:
            chosen = [self._tiled.select(image) for image in images]
            found = [self._tiled.detect(*pair) for pair in zip(images, chosen)]
            self.num_tiles += (total := sum(len(self._tiled.tiles(*image.shape[:2])) for image in images))
            self.num_skipped_tiles += total - sum(map(len, chosen))
        self.best_score = max(self.best_score, 0.0, *(x.scores.max().item() for x in found if len(x)))
        if self.score_thresh is not None:
            found = [instances[instances.scores >= self.score_thresh] for instances in found]
        return found

    def activation_masks(self, images: Sequence[np.ndarray]) -> list[dict[str, dict[str, Tensor]]]:
        """Where the sparse head computes, for :func:`d2_ext.visualization.draw_masks`.

        Args:
            images: (H, W, 3) uint8 BGR arrays.

        Returns:
            Per image, by level name and branch: bool maps that cover the image, as it is resized; with
            ``TEST.TILE`` see :meth:`TiledDetector.activation_masks`.

        Raises:
            ConfigError: if the detector has no sparse head.
        """
        if not hasattr(self.model, "activation_masks"):
            raise ConfigError(
                f"{type(self.model).__name__} has no activation masks: its head computes everywhere. Expected a "
                "detector with a sparse head (RetinaNetCEASC, GFLCEASC, FCOS or DeFCN with SPARSE: True)."
            )
        self._refuse_to_hang()
        ordered = self._in_model_order([_checked(image) for image in images])
        if self._tiled is not None:
            return [self._tiled.masks_of(image) for image in ordered]
        return self.model.activation_masks([self._batches.prepare(image) for image in ordered])

    def _refuse_to_hang(self) -> None:
        # A fork has no threads but its own: an operation would wait for the others of the pool without end.
        if os.getpid() != self._process and torch.get_num_threads() > 1:
            raise ConfigError(
                f"This predictor was made in process {self._process}, and this process was forked from it, without the "
                f"{torch.get_num_threads()} threads that compute. Call torch.set_num_threads(1) here first, or start "
                "processes by 'spawn' (multiprocessing.get_context('spawn')) and make a predictor in each."
            )

    def _in_model_order(self, images: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return [p[:, :, ::-1] for p in images] if self.cfg.INPUT.FORMAT == "RGB" else images


def _as_array(image: Image) -> np.ndarray:
    return image if isinstance(image, np.ndarray) else read_image(image)


def _checked(image: np.ndarray) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise DatasetError(f"An image is a {type(image).__name__}. Expected a (height, width, 3) uint8 array, BGR.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DatasetError(
            f"An image has shape {image.shape} and type {image.dtype}. Expected (height, width, 3) uint8, BGR."
        )
    return image
