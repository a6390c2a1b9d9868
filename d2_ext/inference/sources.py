"""Where images come from: files, folders, patterns, videos, cameras; read one by one."""

from __future__ import annotations

import glob
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from d2_ext.errors import DatasetError, did_you_mean
from d2_ext.images import IMAGE_SUFFIXES, printable, read_image

import cv2
import numpy as np

Item = TypeVar("Item")

VIDEO_SUFFIXES = frozenset((".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"))


@dataclass(frozen=True)
class Frame:
    """One image, or why there is none.

    Attributes:
        source: the path, or ``camera 0``, as messages name it.
        name: path relative to what the user named, which results are filed under; of a video, that of the video.
        number: of the frame in its video or camera, from 0; None for an image.
        image: (H, W, 3) uint8 BGR; None if it could not be read.
        error: the reason then.
    """

    source: str
    name: str
    number: int | None = None
    image: np.ndarray | None = None
    error: str = ""


@dataclass(frozen=True)
class Source:
    """An image file, video or camera.

    Attributes:
        kind: ``"image"``, ``"video"`` or ``"camera"``.
        path: file, or number of the camera.
        name: see :class:`Frame`.
    """

    kind: str
    path: str
    name: str

    def frames(self) -> Iterator[Frame]:
        """Read it; what cannot be read is a frame with an error."""
        if self.kind == "image":
            try:
                yield Frame(self.path, self.name, image=read_image(self.path))
            except DatasetError as error:
                yield Frame(printable(self.path), printable(self.name), error=str(error))
            return
        said = self.path if self.kind == "video" else f"camera {self.path}"
        capture = cv2.VideoCapture(self.path if self.kind == "video" else int(self.path))
        number = 0
        try:
            while (found := capture.read())[0]:
                yield Frame(said, self.name, number, np.ascontiguousarray(found[1]))
                number += 1
        finally:
            capture.release()
        if number == 0:
            yield Frame(said, self.name, error=f"{said}: no frame could be read.")

    def video_properties(self) -> tuple[int | None, float]:
        """Number of frames, None if unknown, and frames per second (25 if the file does not say it)."""
        if self.kind == "camera":
            return None, 25.0
        capture = cv2.VideoCapture(self.path)
        try:
            count, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
        finally:
            capture.release()
        return count if count > 0 else None, rate if 0 < rate < 1000 else 25.0


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """Turn what a user names into sources, in the order given; the contents of a folder or pattern sorted.

    Args:
        inputs: each an image, a video, a folder of these (not its subfolders), a glob pattern (``**`` for any depth),
            or a number, which means a camera.

    Raises:
        DatasetError: for an input that does not exist or holds nothing that can be read.
    """
    found: dict[str, Source] = {}
    for source in (source for text in inputs for source in _find(text)):
        # Results of a/x.jpg and b/x.jpg must not overwrite each other: the second becomes x_2.jpg.
        stem, suffix = os.path.splitext(source.name)
        names = (f"{stem}_{count}{suffix}" for count in itertools.count(2))
        name = source.name if source.name not in found else next(name for name in names if name not in found)
        found[name] = replace(source, name=name)
    return list(found.values())


def count_frames(sources: Iterable[Source]) -> int | None:
    """How many frames there will be, None if a camera or video does not say it."""
    total = 0
    for source in sources:
        count = 1 if source.kind == "image" else source.video_properties()[0]
        if count is None:
            return None
        total += count
    return total


def read_ahead(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """Give the items of an iterable in order, while a thread fetches the next ``depth`` ones."""
    iterator = iter(items)

    def fetch() -> list[Item]:
        return list(itertools.islice(iterator, 1))  # empty at the end

    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(fetch) for _ in range(depth))
        while fetched := pending.popleft().result():
            pending.append(pool.submit(fetch))
            yield fetched[0]


def _find(text: str) -> list[Source]:
    if text.isdecimal() and not os.path.exists(text):
        return [Source("camera", text, f"camera{text}")]
    if os.path.isfile(text):
        return [Source(_kind(text) or "image", text, Path(text).name)]  # a file that is named is tried
    if os.path.isdir(text):
        with os.scandir(text) as entries:
            paths = sorted(entry.path for entry in entries if entry.is_file())
        return _readable(paths, text, text)
    if glob.has_magic(text):
        paths = sorted(path for path in glob.iglob(text, recursive=True) if os.path.isfile(path))
        parts = Path(text).parts[:-1]  # the folders before the first wildcard
        fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
        return _readable(paths, text, os.path.join(*parts[:fixed]) if fixed else ".")
    folder = Path(text).parent
    near = f"There is no folder {printable(folder)}."
    if folder.is_dir():
        near = did_you_mean(printable(Path(text).name), map(printable, os.listdir(folder)))
    raise DatasetError(
        f"No image, folder, video or pattern {text!r} (looked for {printable(os.path.abspath(text))}). {near}".rstrip()
    )


def _readable(paths: Sequence[str], text: str, root: str) -> list[Source]:
    sources = [Source(kind, path, os.path.relpath(path, root)) for path in paths if (kind := _kind(path))]
    if not sources:
        deeper = os.path.isdir(text) and any(entry.is_dir() for entry in os.scandir(text))
        advice = (
            f"Its subfolders are not looked at; for these write '{os.path.join(text, '**', '*')}'." if deeper else ""
        )
        raise DatasetError(
            f"{text!r} holds {len(paths)} files, but no image and no video ({', '.join(sorted(IMAGE_SUFFIXES))}, "
            f"{', '.join(sorted(VIDEO_SUFFIXES))}). {advice}".rstrip()
        )
    return sources


def _kind(path: str) -> str | None:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in VIDEO_SUFFIXES and path == printable(path):  # OpenCV crashes on other names; images say what is wrong
        return "video"
    return "image" if suffix in IMAGE_SUFFIXES or suffix in VIDEO_SUFFIXES else None
