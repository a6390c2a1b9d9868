"""The script that needs no torch takes files from strangers: one line for each that cannot be used, no traceback."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from helpers.scripts import ROOT, load_script
from helpers.strange_files import STRANGE, small_detector

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
script = load_script(ROOT / "projects/deploy/onnx_predict.py")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder with an image; the test process keeps its memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "limit_memory", lambda gigabytes: None)
    cv2.imwrite("a.jpg", np.zeros((8, 8, 3), np.uint8))


def run(model: Any, *arguments: str) -> int:
    Path("a.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return script.main(["a.onnx", *(arguments or ["a.jpg"]), "--output", "drawn", "--threshold", "0"])


def metadata(key: str, value: str | None) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        entry = next(entry for entry in model.metadata_props if entry.key == key)
        if value is None:
            model.metadata_props.remove(entry)
        else:
            entry.value = value

    return change


def answer(
    name: str, value: list[Any], kind: int | None = None, shape: list[int] | None = None
) -> Callable[[Any], None]:
    """Another constant under the name of an output, of any shape."""

    def change(model: Any) -> None:
        old = next(tensor for tensor in model.graph.initializer if tensor.name == f"one_{name}")
        size = list(old.dims) if shape is None else shape
        old.CopyFrom(onnx.helper.make_tensor(old.name, old.data_type, size, value))
        output = next(value for value in model.graph.output if value.name == name)
        output.type.tensor_type.ClearField("shape")

    return change


METADATA = [
    ("class_names", None),
    ("class_names", "5"),
    ("class_names", "["),
    ("class_names", "[1]"),
    ("class_names", "[]"),
    ("class_names", "{}"),
    ("input_format", "[]"),
    ("input_format", "null"),
    ("input_dtype", '"object"'),
    ("input_dtype", "7"),
    ("input_dtype", None),
    ("min_size", "-5"),
    ("min_size", "NaN"),
    ("min_size", "1e9"),
    ("max_size", '"x"'),
    ("max_size", None),
]


@pytest.mark.parametrize(("key", "value"), METADATA)
def test_metadata_of_the_wrong_kind_is_one_line(
    key: str, value: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_detector()
    metadata(key, value)(model)
    assert run(model) == 1
    says = "it holds no metadata" if (key, value) == ("class_names", None) else f"its metadata {key} is"
    err = capsys.readouterr().err
    assert err.startswith(f"onnx_predict: a.onnx cannot be used: {says}")
    assert err.count("\n") == 1
    assert not Path("drawn").exists()


# Without the walk through the whole graph that needs the package onnx, sizes are left to the limit of memory.
LEFT_TO_MEMORY = {"no data", "negative size", "huge expansion", "huge constant"}


@pytest.mark.parametrize("case", [case for case in STRANGE if case not in LEFT_TO_MEMORY])
def test_strange_files_are_refused_before_the_runtime_opens_them(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_detector()
    STRANGE[case][0](model)
    if not case.startswith("other"):  # names of inputs and outputs are asked of the runtime
        monkeypatch.setattr(script.onnxruntime, "InferenceSession", None)
    assert run(model) == 1
    err = capsys.readouterr().err
    assert "NoneType" not in err
    assert "a.onnx cannot be used: it" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"\xff" * 30, b"\x3a\x7f", b"no model", b"\x38\x05"], ids=str)
def test_damaged_files_are_one_line(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(content) == 1
    assert "a.onnx cannot be used" in capsys.readouterr().err


NAN, INF = float("nan"), float("inf")
ANSWERS = {
    "nan": (answer("boxes", [NAN, 0, 1, 1]), "not finite"),
    "infinite score": (answer("scores", [INF]), "not finite"),
    "class beyond the names": (answer("classes", [7]), "classes beyond its 1 names"),
    "negative class": (answer("classes", [-1]), "classes beyond its 1 names"),
    "two scores for one box": (answer("scores", [1, 1], shape=[2]), "it gives boxes"),
    "a scalar": (answer("scores", [1], shape=[]), "it gives boxes"),
    "boxes of five numbers": (answer("boxes", [1] * 5, shape=[1, 5]), "it gives boxes"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_answers_that_are_no_detections_are_one_line_an_image(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = ANSWERS[case]
    model = small_detector()
    change(model)
    assert run(model) == 1
    err = capsys.readouterr().err
    assert err.startswith("onnx_predict: a.jpg: it gives")
    assert says in err


def test_boxes_far_outside_are_drawn_at_the_border(capsys: pytest.CaptureFixture[str]) -> None:
    model = small_detector()
    answer("boxes", [-1e30, 0, 1e30, 1])(model)
    assert run(model) == 0
    assert capsys.readouterr().out == "a.jpg\tcar\t0.000\t0.0\t0.0\t8.0\t1.0\n"


def test_images_that_cannot_be_read_or_written_do_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    odd, long = os.fsdecode(b"caf\xe9.jpg"), "n" * 251 + ".jpg"
    for name in (odd, long):
        Path(name).write_bytes(Path("a.jpg").read_bytes())
    Path("empty.jpg").touch()
    assert run(small_detector(), odd, long, "empty.jpg", "none.jpg", "a.jpg") == 1
    err = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(":")[0] for line in err] == ["caf\\xe9.jpg", "empty.jpg", "none.jpg"]
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["a.png", "n" * 251 + ".png"]


def test_folders_and_videos_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/sub").mkdir(parents=True)
    for name in ("photos/b.png", "photos/a.jpg", "photos/sub/c.jpg"):
        cv2.imwrite(name, np.zeros((8, 8, 3), np.uint8))
    Path("photos/notes.txt").write_text("")
    video = cv2.VideoWriter("photos/v.avi", cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (32, 16))
    for _ in range(3):
        video.write(np.zeros((16, 32, 3), np.uint8))
    video.release()
    assert run(small_detector(), "photos") == 0
    names = [line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["a.jpg", "b.png", "v.avi#0", "v.avi#1", "v.avi#2"]
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["a.png", "b.png", "v.mp4"]
    drawn = cv2.VideoCapture("drawn/v.mp4")
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (3, 5)


def test_a_folder_without_images_and_a_broken_video_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("nothing").mkdir()
    assert run(small_detector(), "nothing") == 1
    assert "the folder nothing holds no image and no video" in capsys.readouterr().err
    Path("v.mp4").write_bytes(b"no video")
    assert run(small_detector(), "v.mp4", "a.jpg") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "onnx_predict: v.mp4: no frame could be read."
    assert [path.name for path in Path("drawn").iterdir()] == ["a.png"]
