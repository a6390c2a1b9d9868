"""The export tool from its command line, and its file in a process that has neither torch nor Detectron2."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

from d2_ext.cli import export as tool
from d2_ext.export import SUFFIXES, ExportableDetector, formats

import numpy as np
import pytest
import torch

from helpers.export_models import noise, tiny_config, tiny_model
from helpers.exported_files import ExportedFiles
from helpers.failing_calls import small_files
from helpers.scripts import ROOT, load_script, run_python

cv2 = pytest.importorskip("cv2")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

NAMES = ["boat", "swimmer", "buoy"]
# Runs a script after making sure that none of these can be imported.
BLOCKED = """
import runpy, sys
for name in ("torch", "torchvision", "detectron2", "d2_ext"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Config, weights with the names of their classes, and an image of a tiny FCOS."""
    folder = tmp_path_factory.mktemp("model")
    cfg = tiny_config("fcos", "DATASETS.TEST", ("synthetic_drone_val",), "INPUT.MIN_SIZE_TEST", 96)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": tiny_model("fcos").state_dict(), "class_names": NAMES}, folder / "model.pth")
    image = noise(1, 3, 96, 128)[0].permute(1, 2, 0).numpy()
    cv2.imwrite(str(folder / "image.png"), image)
    files = ["--config-file", str(folder / "config.yaml"), "--weights", str(folder / "model.pth")]
    return [*files, "--images", str(folder / "image.png")]


@pytest.fixture(scope="module")
def onnx_file(arguments: list[str], exported: ExportedFiles) -> Path:
    """What the tool makes of the model; the first step, which takes longest, is taken from a file that is there."""
    recorded = exported.path("fcos")  # before its own export would meet the patch below

    def copy(detector: ExportableDetector, path: Path, metadata: dict[str, Any], input_dtype: str) -> None:
        ours, theirs = detector.model.state_dict(), ExportableDetector(tiny_model("fcos")).model.state_dict()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())
        shutil.copy(recorded, path)

    path = Path(arguments[1]).with_name("detector.onnx")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(formats, "write_onnx", copy)
        assert tool.main([*arguments, "--format", "onnx", "--output", str(path), "--threads", "1"]) == 0
    steps = re.findall(r"^\[ *\d+ s\] (.*)", printed.getvalue(), re.MULTILINE)
    assert [step.split()[0] for step in steps] == ["reading", "recording", "comparing", "measuring"]
    return path


def test_it_leaves_one_file_that_was_compared(onnx_file: Path) -> None:
    assert onnx_file.is_file()
    assert not list(onnx_file.parent.glob(".*.part")), "nothing half written is left"


def test_the_file_detects_without_torch_and_detectron2(onnx_file: Path, arguments: list[str], tmp_path: Path) -> None:
    script = str(ROOT / "projects/deploy/onnx_predict.py")
    options = ["--output", str(tmp_path), "--threshold", "0.06"]
    result = run_python("-c", BLOCKED, script, onnx_file, arguments[-1], *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    model = tiny_model("fcos")
    pixels = torch.from_numpy(cv2.imread(arguments[-1]).transpose(2, 0, 1).copy())
    with torch.no_grad():
        expected = model([{"image": pixels}])[0]["instances"]
    assert len(lines) == len(expected) > 0
    assert [line[1] for line in lines] == [NAMES[c] for c in expected.pred_classes.tolist()]
    found = np.array([[float(v) for v in line[3:]] for line in lines])
    np.testing.assert_allclose(found, expected.pred_boxes.tensor.numpy(), atol=0.06)  # printed with one digit
    assert cv2.imread(str(tmp_path / "image.png")).shape == (96, 128, 3)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (["a/1.jpg", "b/1.jpg"], "would both be drawn into 1.png"),
        (["drawn/1.png"], "not empty. Name a new folder, or add --overwrite"),
        (["drawn/1.png", "--overwrite"], "would be overwritten"),
    ],
)
def test_the_script_that_needs_no_torch_overwrites_nothing_silently(
    images: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a/1.jpg", "b/1.jpg", *(["drawn/1.png"] if "drawn/1.png" in images else [])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"an image")
    monkeypatch.chdir(tmp_path)
    script = load_script("projects/deploy/onnx_predict.py")
    assert script.main(["detector.onnx", *images, "--output", "drawn"]) == 2
    assert said in capsys.readouterr().err
    assert all(path.read_bytes() == b"an image" for path in tmp_path.glob("*/*"))


def test_an_existing_file_is_kept(onnx_file: Path, arguments: list[str], capsys) -> None:
    before = onnx_file.read_bytes()
    assert tool.main([*arguments, "--format", "onnx", "--output", str(onnx_file)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert onnx_file.read_bytes() == before


@pytest.mark.long
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_8_bits_are_timed_beside_the_same_file_in_float32(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, kind: str
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip(kind)
    file, image = tmp_path / f"a{SUFFIXES[kind]}", arguments[arguments.index("--images") + 1]
    assert tool.main([*arguments, "--format", kind, "--output", str(file), "--int8", "--calibration", image]) == 0
    out = capsys.readouterr().out
    assert "latency of the file in float32" in out
    assert "8 bits: " in out or "warning: 8 bits are slower" in out
    assert {path.stem for path in tmp_path.iterdir()} == {"a"}


def test_8_bits_that_bring_nothing_are_named() -> None:
    assert tool.worth_of_8_bits(20.0, 30.0) == "8 bits: 1.5 times as fast as the same file in float32, on this machine."
    assert tool.worth_of_8_bits(30.0, 20.0).startswith(
        "warning: 8 bits are slower than float32 on this machine, 30.0 against"
    )


def test_wrong_usage_gives_2_and_unusable_files_1(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert tool.main([*arguments, "--format", "onnx", "--output", str(tmp_path / "a.pt2")]) == 2
    assert "end with .onnx" in capsys.readouterr().err
    assert tool.main([*arguments, "--format", "torch", "--half", "--output", str(tmp_path / "a.pt2")]) == 2
    assert "float32" in capsys.readouterr().err
    output = ["--format", "onnx", "--output", str(tmp_path / "a.onnx")]
    assert tool.main([*arguments[:-1], str(tmp_path / "no.jpg"), *output]) == 1
    assert "no.jpg" in capsys.readouterr().err
    assert tool.main([*arguments[:3], str(tmp_path / "no.pth"), *arguments[4:], *output]) == 1
    assert "no.pth" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--opts", "MODEL.WEIGHTS", ""], "names no weights. Give those of a training with --weights"),
        (["--config-file", "none.yaml"], "none.yaml"),
        (["--calibration", "a.jpg"], "--calibration is for --int8 alone"),
        (["--sparse"], "FCOS of this config has no sparse towers"),
        (["--opts", "MODEL.FCOS.DEFORM_LAST_CONV"], "MODEL.FCOS.DEFORM_LAST_CONV"),
    ],
    ids=["no weights", "no config", "calibration", "dense model", "key without value"],
)
def test_wrong_usage_is_named(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, changes: list[str], said: str
) -> None:
    assert tool.main([*arguments, "--format", "onnx", "--output", str(tmp_path / "a.onnx"), *changes]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_other_models_weights_and_broken_images_are_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = ["--format", "onnx", "--output", str(tmp_path / "out/a.onnx")]
    torch.save({"model": tiny_model("defcn").state_dict()}, tmp_path / "other.pth")
    assert tool.main([*arguments, *output, "--weights", str(tmp_path / "other.pth")]) == 1
    assert "does not fit the model" in capsys.readouterr().err
    (tmp_path / "broken.png").write_bytes(Path(arguments[-1]).read_bytes()[:200])
    assert tool.main([*arguments[:-1], str(tmp_path / "broken.png"), *output]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_weights_beside_an_openvino_file_are_kept(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("openvino")
    (tmp_path / "a.bin").write_bytes(b"somebody's")
    assert tool.main([*arguments, "--format", "openvino", "--output", str(tmp_path / "a.xml")]) == 2
    assert "a.bin is there already" in capsys.readouterr().err
    assert (tmp_path / "a.bin").read_bytes() == b"somebody's"


def test_a_file_that_detects_something_else_is_not_written(
    onnx_file: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    def wrong(detector: object, path: Path, *rest: object, **options: object) -> None:
        onnx = pytest.importorskip("onnx")
        model = onnx.load(onnx_file)
        for tensor in model.graph.initializer:
            if tensor.name.endswith("bbox_pred.weight"):
                values = onnx.numpy_helper.to_array(tensor) * 2
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(tool, "export_file", wrong)
    assert tool.main([*arguments, "--format", "onnx", "--output", str(tmp_path / "a.onnx")]) == 1
    assert "differ from the model's" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_metadata_can_be_read_as_json(onnx_file: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    stored = onnxruntime.InferenceSession(str(onnx_file)).get_modelmeta().custom_metadata_map
    assert json.loads(stored["class_names"]) == NAMES
    assert json.loads(stored["min_size"]) == 96


def test_a_full_disk_is_one_error_that_names_the_file(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "detector.pt2"
    with small_files(100_000):
        assert tool.main([*arguments, "--format", "torch", "--output", str(path)]) == 1
    assert f"error: [Errno 27] File too large: '{path}'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
