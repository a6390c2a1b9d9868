"""Results on disk: images, videos, COCO json, CSV. Written as they come; a file is whole or not there."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from d2_ext.errors import DatasetError, is_out_of_memory
from d2_ext.files import naming, replacing
from d2_ext.images import MEMORY_ADVICE, write_image
from d2_ext.inference.predictor import BatchPredictor
from d2_ext.inference.results import category_ids, class_name, to_coco_results
from d2_ext.inference.sources import Frame
from d2_ext.visualization import draw_boxes, draw_masks

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances

WRITABLE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# What a prediction may write besides drawings, and the hidden list of all that it wrote: a JSON string a line.
RESULT_FILES = ("coco_results.json", "coco_images.json", "detections.csv", "unreadable.txt")
WRITTEN = ".predicted.jsonl"
CSV_COLUMNS = ("file", "frame", "class", "class_id", "score", "x0", "y0", "x1", "y1")


class ResultWriter(ABC):
    """Takes results one by one; a context manager. What is written appears under its name at the end, and only then.

    Leaving the context by an exception leaves nothing behind, except what was complete before (images).

    Args:
        folder: of the results; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = contextlib.ExitStack()

    @abstractmethod
    def write(self, frame: Frame, instances: Instances) -> None:
        """Add the detections of one frame."""

    def finish(self) -> None:  # noqa: B027 (most have nothing left to do)
        """Complete what is open."""

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._files.__exit__(kind, *rest)


class DrawingWriter(ResultWriter):
    """Draws detections: images as images, videos and cameras as videos, each under its own name in a folder.

    Args:
        folder: made if it is not there.
        metadata: names and colors of the classes.
        frame_rates: of each video, by name; 25 if it is not there.
        labels: write class and score beside each box.
    """

    def __init__(
        self, folder: Path, metadata: Metadata, frame_rates: dict[str, float] | None = None, *, labels: bool = True
    ) -> None:
        super().__init__(folder)
        self.metadata, self.frame_rates, self.labels = metadata, frame_rates or {}, labels
        self._video: tuple[str, cv2.VideoWriter, contextlib.ExitStack, Path] | None = None
        self._frames = 0  # of the video

    def write(self, frame: Frame, instances: Instances) -> None:
        """Draw one frame.

        Raises:
            DatasetError: it cannot be written; memory does not suffice for it.
        """
        assert frame.image is not None, f"{frame.source} cannot be drawn on: {frame.error}"
        with naming_memory(frame, "drawn"):
            drawn = draw_boxes(frame.image, instances, self.metadata, labels=self.labels)
            if frame.number is None:
                write_image(self.folder / image_name(frame.name), drawn)
        if frame.number is None:
            note_result(self.folder, self.folder / image_name(frame.name))
        else:
            self._video_of(frame.name, drawn).write(drawn)
            self._frames += 1

    def finish(self) -> None:
        """Complete the last video.

        Raises:
            DatasetError: it is not whole: OpenCV says nothing about a full disk.
        """
        if self._video is not None:
            name, writer, file, temporary = self._video
            self._video = None
            with file:
                writer.release()
                capture = cv2.VideoCapture(str(temporary))
                written = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
                capture.release()
                if written != self._frames:
                    path = (self.folder / name).with_suffix(".mp4")
                    raise DatasetError(
                        f"{path} could not be written: of {self._frames} frames {written} can be read. Is there space?"
                    )

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None and self._video is not None:
            self._video[1].release()
            self._video[2].__exit__(kind, *rest)
        super().__exit__(kind, *rest)

    def _video_of(self, name: str, image: np.ndarray) -> cv2.VideoWriter:
        if self._video is not None and self._video[0] == name:
            return self._video[1]
        self.finish()
        path = (self.folder / name).with_suffix(".mp4")
        file = contextlib.ExitStack()
        temporary = file.enter_context(replacing(path))
        note_result(self.folder, path)
        rate = self.frame_rates.get(name, 25.0)
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, image.shape[1::-1])
        if not writer.isOpened():
            raise DatasetError(f"{path}: this build of OpenCV cannot write MPEG-4 video. Install opencv-python.")
        self._video, self._frames = (name, writer, file, temporary), 0
        return writer


class MaskWriter(ResultWriter):
    """Draws where a sparse head computes, as ``<name>_masks.jpg``: a row for each branch, a column for each level.

    Args:
        folder: made if it is not there.
        predictor: of the detections.
        width: of one map in the grid, px.

    Raises:
        ConfigError: if the detector has no sparse head.
    """

    def __init__(self, folder: Path, predictor: BatchPredictor, width: int) -> None:
        super().__init__(folder)
        predictor.activation_masks([])  # refused here, not after an hour
        self.predictor, self.width = predictor, width

    def write(self, frame: Frame, instances: Instances) -> None:
        """Draw the masks of one frame; errors as of :class:`DrawingWriter`."""
        assert frame.image is not None, f"{frame.source} cannot be drawn on: {frame.error}"
        name = image_name(frame.name)
        number = "" if frame.number is None else f"_{frame.number:06d}"
        path = self.folder / name.with_name(f"{name.stem}{number}_masks.jpg")
        with naming_memory(frame, "drawn with its masks"):
            (masks,) = self.predictor.activation_masks([frame.image])
            write_image(path, draw_masks(frame.image, masks, tile_width=self.width))
        note_result(self.folder, path)


class CocoWriter(ResultWriter):
    """Writes a list of COCO results, and beside it the images and categories that its ids mean.

    ``coco_results.json`` is what ``COCO.loadRes`` and evaluation servers read; ``coco_images.json`` is a COCO data set
    without annotations, for ``COCO(...)``. Images are numbered from 1, unless their ids are given.

    Args:
        folder: made if it is not there.
        metadata: names and category ids of the classes.
        num_classes: K.
        image_ids: by base name of the file, from the data set's own json.
    """

    def __init__(
        self, folder: Path, metadata: Metadata, num_classes: int, image_ids: dict[str, int] | None = None
    ) -> None:
        super().__init__(folder)
        self._ids = image_ids
        self._categories = category_ids(metadata, num_classes)
        named = [{"id": c, "name": class_name(metadata, i)} for i, c in enumerate(self._categories)]
        self._results = self._open(folder / "coco_results.json")
        self._images = self._open(folder / "coco_images.json")
        self._results.write("[")
        self._images.write(f'{{"categories": {json.dumps(named)},\n"annotations": [],\n"images": [')
        self._count = self._rows = 0

    def write(self, frame: Frame, instances: Instances) -> None:
        """Add the detections of one frame.

        Raises:
            DatasetError: if ids were given, but none for this image.
        """
        height, width = instances.image_size
        file_name = frame.name if frame.number is None else f"{frame.name}#{frame.number}"
        number = self._count + 1
        if self._ids is not None:
            base = os.path.basename(file_name)
            if base not in self._ids:
                raise DatasetError(f"The json with the ids of images has no file_name {base!r}.")
            number = self._ids[base]
        image = {"id": number, "file_name": file_name, "width": width, "height": height}
        with naming(self.folder / "coco_images.json"):
            self._images.write(("," if self._count else "") + "\n" + json.dumps(image))
        self._count += 1
        with naming(self.folder / "coco_results.json"):
            for row in to_coco_results(instances, number, self._categories):
                self._results.write(("," if self._rows else "") + "\n" + json.dumps(row))
                self._rows += 1

    def finish(self) -> None:
        """Close both lists."""
        self._results.write("\n]\n")
        self._images.write("\n]}\n")

    def _open(self, path: Path) -> IO[str]:
        temporary = self._files.enter_context(replacing(path))
        note_result(self.folder, path)
        return self._files.enter_context(temporary.open("w", encoding="utf-8"))


class CsvWriter(ResultWriter):
    """Writes a table with a row per detection: file, frame of a video, class and its number, score, XYXY px."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path.parent)
        self._path, self._metadata = path, metadata
        temporary = self._files.enter_context(replacing(path))
        note_result(self.folder, path)
        file = self._files.enter_context(temporary.open("w", encoding="utf-8", newline=""))
        self._table = csv.writer(file)
        self._table.writerow(CSV_COLUMNS)

    def write(self, frame: Frame, instances: Instances) -> None:
        """Add the detections of one frame."""
        first = [frame.name, "" if frame.number is None else frame.number]
        rows = zip(instances.pred_classes.tolist(), instances.scores.tolist(), instances.pred_boxes.tensor.tolist())
        with naming(self._path):
            for number, score, box in rows:
                name = class_name(self._metadata, number)
                self._table.writerow([*first, name, number, f"{score:.4f}", *(f"{x:.2f}" for x in box)])


@contextlib.contextmanager
def naming_memory(frame: Frame, done: str) -> Iterator[None]:
    """Context in which memory that runs out is an error about one frame, since others may be smaller.

    Args:
        frame: that is worked on.
        done: what it cannot be, such as ``drawn``.

    Raises:
        DatasetError: naming the frame; its cause is the failed allocation.
    """
    try:
        yield
    except Exception as error:  # MemoryError, and what torch and OpenCV raise in its place
        if not is_out_of_memory(error):
            raise
        what = f"Image '{frame.source}'" if frame.number is None else f"Frame {frame.number} of '{frame.source}'"
        raise DatasetError(f"{what} cannot be {done} (memory ran out). {MEMORY_ADVICE}") from error


def note_result(folder: Path, path: Path) -> None:
    """Add a file to the list of what a prediction has written into a folder."""
    with naming(folder / WRITTEN), open(folder / WRITTEN, "a", encoding="utf-8") as file:
        file.write(json.dumps(os.path.relpath(path, folder)) + "\n")


def remove_results(folder: Path) -> int:
    """Remove what an earlier prediction has written into a folder; other files stay.

    Returns:
        How many files were removed.
    """
    listed: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        listed = [str(json.loads(line)) for line in (folder / WRITTEN).read_text(encoding="utf-8").splitlines()]
    count = 0
    for name in dict.fromkeys([*RESULT_FILES, *listed]):
        path = folder / name
        # A list from elsewhere must not reach beyond the folder.
        if path.resolve().is_relative_to(folder.resolve()) and path.is_file():
            path.unlink()
            count += 1
            for above in path.relative_to(folder).parents[:-1]:
                with contextlib.suppress(OSError):  # something else lies in it
                    (folder / above).rmdir()
    (folder / WRITTEN).unlink(missing_ok=True)
    return count


def image_name(name: str) -> Path:
    """Under which name a drawn image is written: its own, as ``.jpg`` if OpenCV cannot write its format."""
    path = Path(name)
    return path if path.suffix.lower() in WRITABLE_SUFFIXES else path.with_suffix(".jpg")
