"""What an image file must be to be trained on: readable, whole, 8 bits a channel, one image, the stated size."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from d2_ext.errors import DatasetError

from PIL import Image

__all__ = ["check_image", "check_image_wholly"]

_EXIF_ORIENTATION = 274
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's names for more than 8 bits a channel
_FILMS = ("GIF", "PNG", "WEBP", "TIFF")  # MPO, a JPEG with previews behind the image, is none
# How files of a format end; what follows it (previews, notes of cameras) is at most a few kilobytes.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 65536


def check_image(path: str | Path, size: tuple[int, int] | None = None) -> None:
    """Check what the header and the end of a file tell, in a fraction of the time of decoding.

    Args:
        path: of the image.
        size: width and height that the annotations state, if they do.

    Raises:
        DatasetError: no such file, an empty one, no image, more pixels than Pillow's limit, more than 8 bits a
            channel, several images in one file, a file that ends too early, and another size.
    """
    with _opened(path) as image:
        if image.mode in _DEEP_MODES:
            raise DatasetError(
                f"Image '{path}' has more than 8 bits a channel (Pillow mode {image.mode!r}), and would be read as "
                "nearly white. Write it with 8 bits a channel."
            )
        if image.format in _FILMS and getattr(image, "n_frames", 1) > 1:
            raise DatasetError(
                f"Image '{path}' holds {image.n_frames} images ({image.format}), and its boxes can belong to one "
                "only. Write that one to a file of its own."
            )
        found, end = _upright_size(image), _ENDS.get(image.format or "")
        unturned = image.size
    if size is not None and tuple(size) != found:
        turned = " before it is turned upright by its EXIF orientation" if tuple(size) == unturned else ""
        raise DatasetError(
            f"Image '{path}' is {found[0]} x {found[1]} px, but its annotation says {size[0]} x {size[1]}{turned}. "
            "Correct width and height there, with the boxes, or restore the image."
        )
    if end is not None and end not in _tail(path):
        check_image_wholly(path)
    if end == _ENDS["PNG"]:
        _verify(path)


def check_image_wholly(path: str | Path) -> None:
    """Decode an image and forget it.

    Raises:
        DatasetError: it cannot be decoded to its end.
    """
    with _opened(path) as image:
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
            raise _unreadable(path, error) from error


class _opened:
    """Open an image's header; every way in which that fails is a ``DatasetError``."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __enter__(self) -> Image.Image:
        path = self.path
        if not os.path.isfile(path):
            what = f"'{path}' is a folder, no image" if os.path.isdir(path) else f"No image '{path}'"
            raise DatasetError(f"{what}. Restore it, or take its entry out of the annotations.")
        if os.path.getsize(path) == 0:
            raise DatasetError(f"Image '{path}' is empty (0 bytes). Restore it, or take its entry out.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self.image = Image.open(path)
        except Image.DecompressionBombError as error:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise DatasetError(
                f"Image '{path}' is larger than {limit / 1e6:.0f} million pixels ({error}). Cut it into tiles, with "
                "their boxes, and train on these."
            ) from error
        except Exception as error:  # broken headers raise what Pillow's parsers happen to raise
            raise _unreadable(path, error) from error
        return self.image

    def __exit__(self, *_: object) -> None:
        self.image.close()


def _unreadable(path: str | Path, error: Exception) -> DatasetError:
    return DatasetError(f"Image '{path}' cannot be read ({error}). Restore it, or take its entry out.")


def _verify(path: str | Path) -> None:
    """Compare the checksums of a PNG. Detectron2 asks for its EXIF data, decodes it thereby, and ignores what fails."""
    with _opened(path) as image:
        try:
            image.verify()
        except Exception as error:  # of Pillow's parsers
            raise _unreadable(path, error) from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    try:
        exif = Image.Exif()
        if image.format == "PNG":  # getexif() would decode it
            exif.load(image.info.get("exif", b""))
        else:
            exif = image.getexif()
        orientation = exif.get(_EXIF_ORIENTATION)
    except Exception:  # broken EXIF data: Detectron2 leaves such an image as it is
        orientation = None
    return (height, width) if orientation in _SIDEWAYS else (width, height)


def _tail(path: str | Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - _TAIL_BYTES, 0))
        return file.read()
