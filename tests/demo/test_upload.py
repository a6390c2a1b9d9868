"""Uploads of every kind get an image or a clear message."""

from __future__ import annotations

import io
import struct
import zlib

from d2_ext.demo import upload
from d2_ext.demo.upload import decode_upload
from d2_ext.errors import DatasetError

import numpy as np
import pytest
from PIL import Image


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", upload.FORMATS)
def test_each_format_is_decoded_to_bgr(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_upload(_encoded(Image.new("RGB", (20, 10), (200, 100, 50)), kind, **options))
    assert image.shape == (10, 20, 3)
    assert image.dtype == np.uint8
    assert np.abs(image[5, 5].astype(int) - [50, 100, 200]).max() <= 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_of_colour_become_three_channels(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert decode_upload(_encoded(Image.new(mode, (6, 4)), kind)).shape == (4, 6, 3)


def test_an_image_is_turned_as_its_exif_entry_says() -> None:
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode_upload(_encoded(image, "JPEG", exif=exif)).shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no image yet"),
        (b"", "no image yet"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a known type"),
        (b"%PDF-1.4", "no image of a known type"),
        (_encoded(Image.new("RGB", (8, 8)), "EPS"), "no image of a known type"),
        (_encoded(Image.effect_noise((64, 64), 50), "PNG")[:-900], "damaged"),
    ],
)
def test_what_is_no_image_gets_a_message_with_what_is_expected(content: bytes | None, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as error:
        decode_upload(content)
    assert "Expected an image (JPEG, PNG" in str(error.value)


def test_deep_and_animated_images_are_refused_as_everywhere() -> None:
    with pytest.raises(DatasetError, match="more than 8 bits"):
        decode_upload(_encoded(Image.new("I;16", (8, 8)), "PNG"))
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in (0, 200)]
    with pytest.raises(DatasetError, match="holds 2 images"):
        decode_upload(_encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))


def test_files_and_images_that_are_too_large_are_refused_before_they_are_decoded() -> None:
    with pytest.raises(DatasetError, match=r"21\.0 MB"):
        decode_upload(b"\xff\xd8" + bytes(21_000_000 - 2))
    # A header of 9000 x 9000 px, with nothing behind it.
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    png += struct.pack(">I", 8) + b"IDAT" + bytes(12)
    with pytest.raises(DatasetError, match="9000 x 9000 px"):
        decode_upload(png)
