"""Tracking and counting on a video that is made from an image of the pages."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

from d2_ext.images import read_image, write_image

import cv2
import numpy as np
import pytest

from helpers.scripts import ROOT, load_script

script = load_script("projects/tracking/count_crossings.py")


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("supervision", "trackers"))), reason="supervision or trackers is missing"
)
def test_a_car_that_passes_the_line_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    # A car, and no other object: its center passes the middle of the window once, from right to left.
    around_a_car = tmp_path / "car.png"
    write_image(around_a_car, read_image(ROOT / "docs/images/thermal.jpg")[110:260, 330:570])
    video, output = tmp_path / "pan.mp4", tmp_path / "counted"
    assert script.main([str(video), "--pan", str(around_a_car), "--output", str(output)]) == 0
    assert "    1 Car out\n0 in, 1 out; " in capsys.readouterr().out

    with (output / "crossings.csv").open(encoding="utf-8") as file:
        ((frame, second, _, name, direction),) = list(csv.reader(file))[1:]
    assert (name, direction) == ("Car", "out")
    assert second == f"{int(frame) / 25:.2f}"
    # The car's box reaches from 405 to 463 px of the image, so its center from 75 to 133 px of this part of it, and the
    # middle of a window of 120 px is at 60 px: 10 to 12 steps of 4 px.
    assert 10 <= int(frame) <= 12
    drawn = cv2.VideoCapture(str(output / "tracked.mp4"))
    assert int(drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == (240 - 120) // script.PAN_STEP + 1
    assert drawn.read()[1].shape == (150, 120, 3)


def test_a_window_moves_over_an_image(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(64, dtype=np.uint8) * 4, 64).reshape(64, 64).T  # brighter to the right
    write_image(tmp_path / "ramp.png", np.stack([ramp] * 3, axis=-1))
    script.write_pan(tmp_path / "ramp.png", tmp_path / "pan.mp4")
    video = cv2.VideoCapture(str(tmp_path / "pan.mp4"))
    frames = [video.read()[1] for _ in range(int(video.get(cv2.CAP_PROP_FRAME_COUNT)))]
    assert [frame.shape for frame in frames] == [(64, 32, 3)] * 9
    brightness = [frame.mean() for frame in frames]
    assert np.allclose(np.diff(brightness), 4 * script.PAN_STEP, atol=3)  # the video is compressed


@pytest.mark.parametrize("missing", ["supervision", "trackers"])
def test_a_missing_package_is_named(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", sys)  # whether it is installed must not matter here
    monkeypatch.setitem(sys.modules, missing, None)
    assert script.main([str(tmp_path / "a.mp4"), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert missing in error.splitlines()[0].split(".")[0]
    assert "pip install supervision trackers" in error
    assert not (tmp_path / "out").exists()
