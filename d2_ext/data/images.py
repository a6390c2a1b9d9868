"""Sizes of images from their headers, as Detectron2 will read the images."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from d2_ext.errors import DatasetError

from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "UNREADABLE", "is_sideways", "read_size", "read_sizes"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# What Pillow raises for files that are no image, or broken ones.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
MANY = 5000  # images from which on the user is told what takes so long
_EXIF_ORIENTATION = 274
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

_logger = logging.getLogger(__name__)


def is_sideways(image: Image.Image) -> bool:
    """Whether the EXIF orientation of an image swaps its width and height."""
    return image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS


def read_size(path: Path, advice: str = "Restore it.") -> tuple[int, int]:
    """Width and height in px from a file's header, turned by its EXIF orientation as Detectron2 turns the image.

    Args:
        path: of an image.
        advice: last sentence of the error.

    Raises:
        DatasetError: if the file is missing or is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (height, width) if is_sideways(image) else (width, height)
    except FileNotFoundError:
        raise DatasetError(f"No image '{path}'. {advice}") from None
    except UNREADABLE as error:
        raise DatasetError(f"Image '{path}' cannot be read ({error}). {advice}") from error


def read_sizes(paths: Sequence[Path], advice: str = "Restore it.") -> list[tuple[int, int] | DatasetError]:
    """Sizes of many images; in the place of one that cannot be read stands the error."""

    def read(path: Path) -> tuple[int, int] | DatasetError:
        try:
            return read_size(path, advice)
        except DatasetError as error:
            return error

    start = time.perf_counter()
    if len(paths) >= MANY:
        _logger.info("Reading the headers of %d images: the annotations do not say their sizes ...", len(paths))
    with ThreadPoolExecutor(max_workers=8) as pool:  # it waits for the disk most of the time
        sizes = list(pool.map(read, paths, chunksize=64))
    if len(paths) >= MANY:
        _logger.info("... done in %.0f s", time.perf_counter() - start)
    return sizes
