"""Choose the evaluators of a data set by its metadata."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.evaluation.coco_regions import write_coco_with_regions
from d2_ext.evaluation.crowdhuman import CrowdHumanEvaluator
from d2_ext.evaluation.visdrone import VisDroneEvaluator
from d2_ext.files import temporary_beside

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators

__all__ = ["build_evaluator"]

EVALUATOR_TYPES = ("coco", "visdrone", "crowdhuman")


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """Build what ``MetadataCatalog.get(dataset_name).evaluator_type`` asks for.

    ``coco`` gives the COCO metric, ``visdrone`` gives that and the official VisDrone metric, ``crowdhuman`` gives AP50,
    miss rate and recall of CrowdHuman. All judge as many detections per image as the model returns,
    ``TEST.DETECTIONS_PER_IMAGE``. The COCO metric ignores no regions, unless the metadata says
    ``coco_ignore_regions=True`` (see :mod:`d2_ext.evaluation.coco_regions`).

    Args:
        cfg: the whole config.
        dataset_name: a registered data set.
        output_folder: where results are written; ``<OUTPUT_DIR>/inference`` if not given.

    Returns:
        The evaluator.

    Raises:
        ConfigError: for an unknown data set, and one whose evaluator type is missing or unknown.
    """
    if dataset_name not in DatasetCatalog:
        known = did_you_mean(dataset_name, DatasetCatalog.list())
        raise ConfigError(f"DATASETS.TEST: no data set '{dataset_name}' is registered. {known}")
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATOR_TYPES:
        raise ConfigError(
            f"The metadata of data set '{dataset_name}' says evaluator_type={kind!r}. Expected one of "
            f"{', '.join(EVALUATOR_TYPES)}. Set it with MetadataCatalog.get('{dataset_name}').set(evaluator_type=...)."
        )
    output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    if kind == "crowdhuman":
        return CrowdHumanEvaluator(dataset_name, output_dir=output_folder)
    coco = _build_coco(dataset_name, output_folder, cfg.TEST.DETECTIONS_PER_IMAGE)
    if kind == "coco":
        return coco
    return DatasetEvaluators([coco, VisDroneEvaluator(dataset_name, output_dir=output_folder)])


def _build_coco(dataset_name: str, output_folder: str, max_detections: int) -> COCOEvaluator:
    """A COCO evaluator of boxes that never reads a json file that an earlier run converted.

    ``COCOEvaluator`` converts a data set without ``json_file`` and then stores the path in the metadata, so that the
    next evaluator of the process would take it for the data set's own. It is removed here.
    """
    metadata = MetadataCatalog.get(dataset_name)
    converts = "json_file" not in metadata.as_dict()
    if converts and metadata.get("coco_ignore_regions", False):
        metadata.json_file = write_coco_with_regions(dataset_name, output_folder)
    evaluator = _CocoWithWholeFiles(dataset_name, Path(output_folder), max_detections)
    if converts:
        vars(metadata).pop("json_file", None)
    return evaluator


class _CocoWithWholeFiles(COCOEvaluator):
    """``COCOEvaluator`` of boxes whose files take their places when all of them are whole; it writes them straight.

    Args:
        dataset_name: a registered data set.
        folder: of the files; made with the first.
        max_detections: of an image that are judged.

    Raises:
        OSError: a file cannot be written, as on a full disk; it is named, and those that were there before stay.
    """

    def __init__(self, dataset_name: str, folder: Path, max_detections: int) -> None:
        self._results_folder, self._unfinished = folder, temporary_beside(folder / "coco")
        with self._arriving():
            super().__init__(
                dataset_name,
                tasks=("bbox",),
                output_dir=str(self._unfinished),
                max_dets_per_image=max_detections,
                use_fast_impl=False,
                allow_cached_coco=False,
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Judge and write, see ``COCOEvaluator``."""
        with self._arriving():
            return super().evaluate(*args, **kwargs)

    @contextlib.contextmanager
    def _arriving(self) -> Iterator[None]:
        written = Path()
        try:
            yield
            for written in sorted(self._unfinished.glob("*")):
                os.replace(written, self._results_folder / written.name)
        except (OSError, RuntimeError) as error:
            cause: BaseException | None = error  # torch wraps the error of a file in one of its own
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            if cause is None or cause.errno is None:
                raise
            newest = max(self._unfinished.glob("*"), key=lambda path: path.stat().st_mtime_ns, default=written)
            raise OSError(cause.errno, cause.strerror, str(self._results_folder / newest.name)) from error
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)
