"""Where images come from: files, folders, patterns, videos, cameras; read one by one."""

from __future__ import annotations

import glob
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
            yield _read(self)
        else:
            yield from _read_video(self)

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
    found = [source for text in inputs for source in _find(text)]
    taken: set[str] = set()
    return [_with_own_name(source, taken) for source in found]


def count_frames(sources: Iterable[Source]) -> int | None:
    """How many frames there will be, None if a camera or video does not say it."""
    total = 0
    for source in sources:
        count = 1 if source.kind == "image" else source.video_properties()[0]
        if count is None:
            return None
        total += count
    return total


def read_ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
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
        return _readable(paths, text, _fixed_folder(text))
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


def _fixed_folder(pattern: str) -> str:
    """The folders of a pattern before its first wildcard."""
    parts = Path(pattern).parts[:-1]
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return os.path.join(*parts[:fixed]) if fixed else "."


def _with_own_name(source: Source, taken: set[str]) -> Source:
    """Results of ``a/x.jpg`` and ``b/x.jpg`` must not overwrite each other: the second becomes ``x_2.jpg``."""
    stem, suffix = os.path.splitext(source.name)
    name, count = source.name, 1
    while name in taken:
        count += 1
        name = f"{stem}_{count}{suffix}"
    taken.add(name)
    return Source(source.kind, source.path, name)


def _read(source: Source) -> Frame:
    try:
        return Frame(source.path, source.name, image=read_image(source.path))
    except DatasetError as error:
        return Frame(printable(source.path), printable(source.name), error=str(error))


def _read_video(source: Source) -> Iterator[Frame]:
    said = source.path if source.kind == "video" else f"camera {source.path}"
    capture = cv2.VideoCapture(source.path if source.kind == "video" else int(source.path))
    try:
        number = 0
        while True:
            whole, image = capture.read()
            if not whole:
                break
            yield Frame(said, source.name, number, np.ascontiguousarray(image))
            number += 1
    finally:
        capture.release()
    if number == 0:
        yield Frame(said, source.name, error=f"{said}: no frame could be read.")
