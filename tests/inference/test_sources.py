"""What users may name as input, and that it is read one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from d2_ext.errors import DatasetError
from d2_ext.inference.sources import count_frames, find_sources, read_ahead

import cv2
import numpy as np
import pytest


def _image(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((8, 12, 3), 90, np.uint8))
    return str(path)


def _video(path: Path, frames: int = 5) -> str:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (32, 16))
    for number in range(frames):
        writer.write(np.full((16, 32, 3), 40 * number, np.uint8))
    writer.release()
    return str(path)


def test_a_folder_gives_its_images_and_videos_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "deeper/c.png"):
        _image(tmp_path / name)
    _video(tmp_path / "v.mp4")
    (tmp_path / "notes.txt").write_text("no image")
    sources = find_sources([str(tmp_path)])
    assert [(source.kind, source.name) for source in sources] == [
        ("image", "a.jpg"),
        ("image", "b.png"),
        ("video", "v.mp4"),
    ]
    assert count_frames(sources) == 7


def test_a_pattern_keeps_the_folders_below_its_fixed_part(tmp_path: Path) -> None:
    for name in ("x/1.png", "y/z/1.png", "1.png"):
        _image(tmp_path / name)
    names = [source.name for source in find_sources([str(tmp_path / "**" / "*.png")])]
    assert names == ["1.png", "x/1.png", "y/z/1.png"]


def test_equal_names_of_different_folders_are_told_apart(tmp_path: Path) -> None:
    inputs = [_image(tmp_path / folder / "1.png") for folder in "abc"]
    assert [source.name for source in find_sources(inputs)] == ["1.png", "1_2.png", "1_3.png"]


def test_a_number_is_a_camera_unless_there_is_such_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (camera,) = find_sources(["0"])
    assert (camera.kind, camera.name) == ("camera", "camera0")
    assert count_frames([camera]) is None
    (tmp_path / "0").mkdir()
    _image(tmp_path / "0" / "a.png")
    assert find_sources(["0"])[0].kind == "image"


def test_frames_of_a_video_are_numbered(tmp_path: Path) -> None:
    (source,) = find_sources([_video(tmp_path / "v.mp4", frames=3)])
    frames = list(source.frames())
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert frames[0].image.shape == (16, 32, 3)
    assert source.video_properties() == (3, 10.0)


def test_what_cannot_be_read_is_a_frame_with_its_reason(tmp_path: Path) -> None:
    for name in ("broken.png", "broken.mp4"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    image, video = (frame for s in find_sources([str(tmp_path)])[::-1] for frame in s.frames())
    assert image.image is video.image is None
    assert "broken.png' cannot be read" in image.error
    assert "broken.mp4: no frame" in video.error


def test_wrong_inputs_are_said_with_the_nearest_name(tmp_path: Path) -> None:
    _image(tmp_path / "street.png")
    with pytest.raises(DatasetError, match="Did you mean 'street.png'"):
        find_sources([str(tmp_path / "steet.png")])
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    with pytest.raises(DatasetError, match="Its subfolders are not looked at"):
        find_sources([str(tmp_path / "outer")])
    with pytest.raises(DatasetError, match="holds 0 files"):
        find_sources([str(tmp_path / "*.jpg")])


def test_reading_ahead_keeps_the_order_and_never_runs_away() -> None:
    made = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    ahead = read_ahead(numbers(), depth=3)
    assert [next(ahead) for _ in range(5)] == [0, 1, 2, 3, 4]
    ahead.close()
    assert len(made) <= 5 + 3
    assert list(read_ahead(range(7), depth=3)) == list(range(7))


def test_an_error_while_reading_ahead_reaches_the_reader() -> None:
    with pytest.raises(ZeroDivisionError):
        list(read_ahead((1 // n for n in (1, 0)), depth=2))
