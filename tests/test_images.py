"""One rule for every reader: one image a file, a format of the list, 8 bits a channel, a name in UTF-8."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from d2_ext.data.formats import recognize
from d2_ext.errors import DatasetError
from d2_ext.images import (
    FORMATS,
    check_image,
    decode_fully,
    is_sideways,
    open_image,
    printable,
    read_image,
    read_size,
    read_sizes,
    write_image,
)
from d2_ext.inference.sources import find_sources

import cv2
import numpy as np
import pytest
from PIL import Image

from helpers.failing_calls import no_memory_of_opencv
from helpers.own_folders import SPLITS, yolo_folder

READERS: list[Callable[[Path], object]] = [check_image, decode_fully, read_image, read_size]
CAFE = b"caf\xe9.jpg"  # in latin-1


def _save(path: Path, mode: str = "RGB", kind: str | None = None, **options: object) -> Path:
    Image.new(mode, (8, 6)).save(path, kind, **options)
    return path


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``gs`` that leaves a file when it is started."""
    marker = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return marker


@pytest.mark.parametrize("read", READERS)
def test_ghostscript_is_never_started_whatever_the_suffix(
    read: Callable[[Path], object], tmp_path: Path, ghostscript: Path
) -> None:
    path = _save(tmp_path / "a.jpg", kind="EPS")
    with pytest.raises(DatasetError, match=r"a\.jpg' cannot be read .* Expected one of JPEG, PNG"):
        read(path)
    assert not ghostscript.exists()


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("mode", "name"), [("I;16", "a.png"), ("I;16", "a.tif"), ("F", "a.tif"), ("I", "a.tif")])
def test_more_than_8_bits_are_refused_in_training_and_prediction(
    read: Callable[[Path], object], mode: str, name: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="more than 8 bits a channel"):
        read(_save(tmp_path / name, mode))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_several_images_in_a_file_are_refused(read: Callable[[Path], object], name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), (i, 0, 0)) for i in (0, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(DatasetError, match="holds 2 images"):
        read(tmp_path / name)


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read(kind: str, tmp_path: Path) -> None:
    path = _save(tmp_path / "a.jpg", kind=kind)  # the content counts, not the suffix
    check_image(path, (8, 6))
    assert read_image(path).shape == (6, 8, 3)
    assert read_size(path) == (8, 6)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_other_modes_of_8_bits_become_three_channels(mode: str, tmp_path: Path) -> None:
    assert read_image(_save(tmp_path / "a.tif", mode)).shape == (6, 8, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_found_without_decoding(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _save(tmp_path / "a.img", kind=kind, exif=exif)
    assert read_size(path) == (6, 8)
    with open_image(path) as image:
        assert is_sideways(image)


@pytest.mark.parametrize("read", READERS)
def test_a_turned_tiff_is_refused_since_it_would_be_turned_twice(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with pytest.raises(DatasetError, match="is a TIFF with an orientation"):
        read(_save(tmp_path / "a.tif", exif=exif))


def test_a_name_that_is_not_utf8_is_said_in_printable_letters(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + CAFE))
    _save(path)
    assert printable(path).endswith(r"caf\xe9.jpg")
    for read in READERS:
        with pytest.raises(DatasetError, match=r"caf\\xe9\.jpg' has a name that is not UTF-8"):
            read(path)
    (error,) = read_sizes([path])
    assert isinstance(error, DatasetError)
    write_image(path, np.zeros((4, 4, 3), np.uint8))  # OpenCV would crash


def test_prediction_lists_such_a_file_as_failed_and_goes_on(tmp_path: Path) -> None:
    for name in (b"a.jpg", CAFE, b"caf\xe9.mp4", b"z.jpg"):
        _save(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)), kind="JPEG")
    frames = [frame for source in find_sources([str(tmp_path)]) for frame in source.frames()]
    assert [frame.name for frame in frames] == ["a.jpg", r"caf\xe9.jpg", r"caf\xe9.mp4", "z.jpg"]
    assert [frame.image is None for frame in frames] == [False, True, True, False]
    assert all("not UTF-8" in frame.error for frame in frames if frame.image is None)
    for frame in frames:
        (frame.source + frame.name + frame.error).encode()


def test_a_data_set_with_such_a_name_is_refused(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path, SPLITS)
    (folder / "images/train" / os.fsdecode(CAFE)).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"images/train/caf\\xe9\.jpg' has a name that is not UTF-8"):
        recognize(folder)


def test_an_image_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    image = np.full((4, 6, 3), 80, np.uint8)
    write_image(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "a.png"), image)
    with pytest.raises(DatasetError, match=r"6 x 4 px cannot be encoded as '\.xyz'"):
        write_image(tmp_path / "a.xyz", image)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="could not be written"):
        write_image(tmp_path / "file" / "a.png", image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new"]


def test_memory_that_runs_out_in_opencv_is_no_image_that_cannot_be_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise no_memory_of_opencv()

    monkeypatch.setattr(cv2, "imencode", fail)
    with pytest.raises(cv2.error, match="Insufficient memory"):
        write_image(tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "says"),
    [(MemoryError(), r"memory ran out\). Free memory"), (OSError(5, "EIO"), r"EIO\). Restore it")],
)
def test_an_image_that_cannot_be_decoded_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fail(*args: object) -> None:
        raise error

    path = _save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(DatasetError, match=rf"a\.png' cannot be read \(.*{says}"):
        read_image(path)


def test_too_many_open_files_are_no_fault_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    path = _save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", fail)
    for read in READERS:
        with pytest.raises(OSError, match="Too many open files"):
            read(path)


@pytest.mark.parametrize("limit", [None, 89_478_485], ids=["Pillow's limit is off", "Pillow's limit"])
def test_an_image_of_too_many_pixels_is_refused_whatever_other_packages_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    Image.new("1", (20_000, 9_000)).save(tmp_path / "large.png", compress_level=9)  # 180 million
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DatasetError, match="larger than 179 million pixels .*Cut it into tiles"):
        check_image(tmp_path / "large.png")
