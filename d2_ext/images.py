"""Reading, checking and writing images: the one place that opens image files.

One rule holds in training, evaluation, prediction and the web page: a file holds one image in one of :data:`FORMATS`,
with 8 bits a channel, under a name in UTF-8. Deeper images (16-bit gray, float TIFF) are refused: the file does not
say which values are black and white, and any guess would make training and prediction see different images. Files
with several images (animations, TIFF pages) are refused: boxes belong to one. Pillow gets the list of formats, so it
tries no other decoder, whatever the file's suffix (EPS would start Ghostscript).

Images turned by their EXIF orientation are read upright, as Detectron2 does, and their sizes are those of the upright
image.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from d2_ext.errors import DatasetError, is_out_of_memory, raise_if_handles_ran_out
from d2_ext.files import replacing

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data.transforms import ResizeShortestEdge
from PIL import Image

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "check_image",
    "decode_fully",
    "is_sideways",
    "open_image",
    "printable",
    "read_image",
    "read_input",
    "read_size",
    "read_sizes",
    "refuse_unusual",
    "write_image",
]

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")  # Pillow's names
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
ADVICE = "Restore it, or take its entry out of the annotations."
MEMORY_ADVICE = "Free memory, or make the image smaller."
MANY = 5000  # images from which on the user is told what takes so long

_EXIF_ORIENTATION = 274
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's names for more than 8 bits a channel
_MULTIPLE = ("GIF", "PNG", "WEBP", "TIFF")  # MPO, a JPEG with previews behind the image, holds one
# How files of a format end; what follows it (previews, notes of cameras) is at most a few kilobytes.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 65536

# Pillow's own limit, which other packages turn off for the whole process when they are imported.
MAX_PIXELS = 178_956_970

_logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def printable(path: PathLike) -> str:
    """The path as text that can be printed and written to files: bytes that are not UTF-8 as ``\\xe9``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@contextmanager
def open_image(path: PathLike, content: bytes | None = None, advice: str = ADVICE) -> Iterator[Image.Image]:
    """Context that opens an image's header and refuses what breaks the rule of this module; pixels are not decoded.

    Args:
        path: of the file.
        content: of the file, if it was read already.
        advice: last sentence of the errors.

    Raises:
        DatasetError: no such file, an empty one, a name that is not UTF-8, no image in one of :data:`FORMATS`, more
            than :data:`MAX_PIXELS`, and what :func:`refuse_unusual` refuses.
    """
    name = f"'{printable(path)}'"
    if name != f"'{os.fspath(path)}'":
        raise DatasetError(f"{name} has a name that is not UTF-8. Rename it, also in its annotations.")
    if content is None:
        if not os.path.isfile(path):
            what = f"{name} is a folder, no image" if os.path.isdir(path) else f"No image {name}"
            raise DatasetError(f"{what}. {advice}")
        if os.path.getsize(path) == 0:
            raise DatasetError(f"Image {name} is empty (0 bytes). {advice}")
    try:
        image = Image.open(path if content is None else BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(name, str(error)) from error
    except Exception as error:  # broken headers raise what Pillow's parsers happen to raise
        raise _unreadable(f"Image {name}", error, f"Expected one of {', '.join(FORMATS)}. {advice}") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_large(name, f"{image.width} x {image.height} px")
        refuse_unusual(image, f"Image {name}")
        yield image


def _too_large(name: str, size: str) -> DatasetError:
    return DatasetError(
        f"Image {name} is larger than {MAX_PIXELS / 1e6:.0f} million pixels ({size}). Cut it into tiles, with their "
        "boxes, and use these."
    )


def _unreadable(name: str, error: BaseException, advice: str = ADVICE) -> DatasetError:
    """The error for an image that could not be read; one that says nothing about the image is raised again."""
    raise_if_handles_ran_out(error)
    if is_out_of_memory(error):
        return DatasetError(f"{name} cannot be read (memory ran out). {MEMORY_ADVICE}")
    return DatasetError(f"{name} cannot be read ({error}). {advice}")


def refuse_unusual(image: Image.Image, name: str) -> None:
    """Refuse an opened image that is deeper than 8 bits, one of several in its file, or a TIFF with an orientation.

    Args:
        image: of which the header was read.
        name: begins the message.

    Raises:
        DatasetError: if it is.
    """
    if image.mode in _DEEP_MODES:
        raise DatasetError(
            f"{name} has more than 8 bits a channel (Pillow mode {image.mode!r}), and the file does not say which "
            "values are black and white. Convert it to 8 bits a channel, the same way for training and prediction."
        )
    if image.format == "TIFF" and Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1) != 1:
        raise DatasetError(
            f"{name} is a TIFF with an orientation, which Pillow applies and Detectron2 applies again. Save it upright."
        )
    try:
        count = getattr(image, "n_frames", 1) if image.format in _MULTIPLE else 1
    except Exception as error:  # counting them reads on in a file that may be damaged
        raise _unreadable(name, error) from error
    if count > 1:
        raise DatasetError(
            f"{name} holds {count} images ({image.format}). Expected one: boxes belong to one only. Write each to a "
            "file of its own."
        )


def is_sideways(image: Image.Image) -> bool:
    """Whether the EXIF orientation of an opened image swaps its width and height."""
    try:
        # Not the method of PNG images, which would decode them.
        return Image.Image.getexif(image).get(_EXIF_ORIENTATION) in _SIDEWAYS
    except Exception:  # broken EXIF data: Detectron2 leaves such an image as it is
        return False


def read_image(path: PathLike, channels: str = "BGR", advice: str = "Restore it, or leave it out.") -> np.ndarray:
    """Read a file as Detectron2 does, turned as its EXIF orientation says.

    Args:
        path: of the image.
        channels: their order, "BGR" or "RGB".
        advice: last sentence of the errors.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DatasetError: see :func:`open_image`; and if it cannot be decoded to its end.
    """
    with open_image(path, advice=advice):
        pass
    try:
        return np.ascontiguousarray(detection_utils.read_image(os.fspath(path), channels))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise _unreadable(f"Image '{path}'", error, advice) from error


def read_input(cfg: CfgNode, path: PathLike) -> dict[str, Any]:
    """Read an image as in testing: resized, channels in the order of the model.

    Args:
        cfg: its ``INPUT`` counts.
        path: of the image.

    Returns:
        Detectron2's input: ``image`` (3, H, W) uint8, and ``height`` and ``width`` of the file in px.

    Raises:
        DatasetError: see :func:`read_image`.
    """
    image = read_image(path, cfg.INPUT.FORMAT)
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    resized = resize.get_transform(image).apply_image(image)
    tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}


def read_size(path: PathLike, advice: str = "Restore it.") -> tuple[int, int]:
    """Width and height in px of the upright image, from the file's header.

    Raises:
        DatasetError: see :func:`open_image`.
    """
    with open_image(path, advice=advice) as image:
        return image.size[::-1] if is_sideways(image) else image.size


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


def check_image(path: PathLike, size: tuple[int, int] | None = None) -> None:
    """Check what the header and the end of a file tell, in a fraction of the time of decoding.

    Args:
        path: of the image.
        size: width and height that the annotations state, if they do.

    Raises:
        DatasetError: see :func:`open_image`; a file that ends too early, and another size.
    """
    with open_image(path) as image:
        stored, end = image.size, _ENDS.get(image.format or "")
        found = stored[::-1] if is_sideways(image) else stored
    if size is not None and tuple(size) != found:
        turned = " before it is turned upright by its EXIF orientation" if tuple(size) == stored else ""
        raise DatasetError(
            f"Image '{path}' is {found[0]} x {found[1]} px, but its annotation says {size[0]} x {size[1]}{turned}. "
            "Correct width and height there, with the boxes, or restore the image."
        )
    if end is not None:
        try:
            with open(path, "rb") as file:
                file.seek(max(os.path.getsize(path) - _TAIL_BYTES, 0))
                tail = file.read()
        except (OSError, MemoryError) as error:
            raise _unreadable(f"Image '{path}'", error) from error
        if end not in tail:
            decode_fully(path)
    if end == _ENDS["PNG"]:
        # Compare the checksums: Detectron2 asks for a PNG's EXIF data, decodes it thereby, and ignores what fails.
        with open_image(path) as image:
            try:
                image.verify()
            except Exception as error:  # of Pillow's parsers
                raise _unreadable(f"Image '{path}'", error) from error


def decode_fully(path: PathLike) -> None:
    """Decode an image and forget it.

    Raises:
        DatasetError: see :func:`open_image`; and if it cannot be decoded to its end.
    """
    with open_image(path) as image:
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
            raise _unreadable(f"Image '{path}'", error) from error


def write_image(path: PathLike, image: np.ndarray) -> None:
    """Write an image; the file is whole or not there.

    Args:
        path: its suffix says the format; its folder is made if it is not there.
        image: (H, W, 3) uint8 BGR.

    Raises:
        DatasetError: if OpenCV cannot encode it, or the file cannot be written.
        MemoryError, cv2.error: memory ran out.
    """
    path = Path(path)
    try:
        encoded, content = cv2.imencode(path.suffix, np.ascontiguousarray(image))
    except cv2.error as error:
        if is_out_of_memory(error):
            raise
        encoded = False
    if not encoded:
        size = f"{image.shape[1]} x {image.shape[0]} px"
        raise DatasetError(f"{printable(path)} could not be written: {size} cannot be encoded as '{path.suffix}'.")
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content.tobytes())
    except OSError as error:
        raise DatasetError(
            f"{printable(path)} could not be written: {error.strerror}. Is there space, and may you write there?"
        ) from error
