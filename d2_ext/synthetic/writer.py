"""Write a synthetic data set to disk: once, whole, and the same whoever asks.

A split is rendered into a folder of its own beside the final one, which is renamed only when everything in it is
written; so the final name never holds half of a split. One writer at a time holds the split's file lock; the system
frees it when its process dies, and the next writer removes what the dead one left.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError, DatasetError
from d2_ext.synthetic.config import (
    CLASSES,
    GENERATOR_VERSION,
    SPLITS,
    SyntheticConfig,
    fingerprint,
    split_folder,
)

from iopath.common.file_io import file_lock

logger = logging.getLogger(__name__)

Rendered = tuple[int, int, bytes, list[dict[str, Any]], dict[str, str]]


def generate(
    config: SyntheticConfig,
    root: str | os.PathLike[str],
    *,
    splits: tuple[str, ...] = SPLITS,
    processes: int = 1,
    progress: bool = True,
) -> dict[str, Path]:
    """Make the splits that are not there yet, and return where they are.

    Args:
        config: recipe.
        root: data root; made if it is not there.
        splits: which of "train" and "val".
        processes: how many render; the bytes do not depend on it. More than one starts fresh interpreters, so a
            script that asks for them needs the usual ``if __name__ == "__main__"``.
        progress: show a bar on the standard error output while rendering.

    Returns:
        Split name -> folder with ``<split>.json`` (COCO) and ``images/``.

    Raises:
        ConfigError: for an unknown split or fewer than one process.
        DatasetError: if the folder cannot be written.

    Example:
        >>> folders = generate(SyntheticConfig(num_train=8, num_val=0), "datasets", progress=False)  # doctest: +SKIP
        >>> sorted(p.name for p in folders["train"].iterdir())  # doctest: +SKIP
        ['fingerprint.json', 'images', 'train.json']
    """
    if processes < 1:
        raise ConfigError(f"processes={processes} does not work. Give 1 or more, at most the number of CPU cores.")
    folders = {split: split_folder(config, root, split) for split in splits}
    for split, folder in folders.items():
        build_split(config, folder, split, processes=processes, progress=progress)
    return folders


def is_complete(folder: Path, config: SyntheticConfig) -> bool:
    """Whether a split's folder is there, whole, and made by this recipe and this generator."""
    try:
        record = json.loads((folder / "fingerprint.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return isinstance(record, dict) and record.get("fingerprint") == fingerprint(config)


def build_split(
    config: SyntheticConfig, folder: Path, split: str, *, processes: int = 1, progress: bool = True
) -> bool:
    """Make one split in a folder of its own, atomically; do nothing if it is there and whole.

    Args:
        config: recipe.
        folder: its final name; what else stands under this name is replaced.
        split: "train" or "val".
        processes: how many render.
        progress: show a bar.

    Returns:
        Whether this call drew the images.

    Raises:
        ConfigError: for fewer than one process.
        DatasetError: if the folder cannot be written.
    """
    if processes < 1:
        raise ConfigError(f"processes={processes} does not work. Give 1 or more, at most the number of CPU cores.")
    if is_complete(folder, config):
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if is_complete(folder, config):  # another process made it while this one waited
                return False
            _replace(config, folder, split, processes, progress)
    except OSError as error:
        raise DatasetError(
            f"The synthetic data cannot be written to {folder.absolute()}: {error}. Expected a folder that can be "
            "written. Set DETECTRON2_DATASETS (or the output folder) to one."
        ) from error
    return True


def _replace(config: SyntheticConfig, folder: Path, split: str, processes: int, progress: bool) -> None:
    """Render ``images/``, ``<split>.json`` and ``fingerprint.json`` into a temporary folder, then rename it.

    The caller holds the lock, so leftovers are of dead writers.
    """
    from tqdm import tqdm

    for leftover in [*folder.parent.glob(f".{folder.name}-*.part"), *folder.parent.glob(folder.name)]:
        logger.info("Removing what is no whole data set of this recipe: %s", leftover)
        shutil.rmtree(leftover)
    logger.info("Drawing %d synthetic images into %s", config.count(split), folder.absolute())
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".part", dir=folder.parent))
    try:
        (work / "images").mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        with closing(_render_all(config, split, processes)) as rendered:
            title = f"synthetic_drone_{split}"
            bar = tqdm(rendered, total=config.count(split), desc=title, unit="image", disable=not progress)
            for index, (width, height, jpeg, labels, tags) in enumerate(bar):
                name = f"{index:06d}.jpg"
                (work / "images" / name).write_bytes(jpeg)
                images.append({"id": index + 1, "file_name": name, "width": width, "height": height, **tags})
                for label in labels:
                    annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **label})
        coco = {
            "info": {"description": title, "version": str(GENERATOR_VERSION)},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": name, "supercategory": "object"} for i, name in enumerate(CLASSES)],
        }
        recipe = dataclasses.asdict(config)
        record = {"fingerprint": fingerprint(config), "version": GENERATOR_VERSION, "config": recipe}
        _write_json(work / f"{split}.json", coco)
        _write_json(work / "fingerprint.json", record)
        work.chmod(0o755)  # mkdtemp makes it private, but other users may share the data root
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(content, file, separators=(",", ":"))
        file.flush()
        os.fsync(file.fileno())  # the rename must not outlive the content in a crash of the machine


def _render_all(config: SyntheticConfig, split: str, processes: int) -> Generator[Rendered, None, None]:
    """Images in the order of their indices."""
    jobs = [(config, split, index) for index in range(config.count(split))]
    processes = min(processes, len(jobs), os.cpu_count() or 1)
    if processes <= 1:
        yield from map(_render, jobs)
        return
    # Fresh interpreters: a fork of a process with OpenCV's or PyTorch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
        try:
            yield from pool.map(_render, jobs, chunksize=8)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread a worker, and an end of it when its parent is killed (it would wait for work for ever)."""
    import cv2

    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    cv2.setNumThreads(1)
    threading.Thread(target=end_with_parent, daemon=True).start()


def _render(job: tuple[SyntheticConfig, str, int]) -> Rendered:
    from d2_ext.synthetic.scene import make_image

    import cv2

    image = make_image(*job)
    good, jpeg = cv2.imencode(".jpg", image.pixels, [cv2.IMWRITE_JPEG_QUALITY, image.quality])
    assert good
    labels = [
        {
            "category_id": label.category + 1,
            "bbox": list(label.box),
            "area": label.box[2] * label.box[3],
            "iscrowd": int(not label.counted),
        }
        for label in image.labels
    ]
    height, width = image.pixels.shape[:2]
    return width, height, jpeg.tobytes(), labels, {"layout": image.layout, "light": image.light}
