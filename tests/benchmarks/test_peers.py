from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from helpers.export_models import tiny_config
from helpers.scripts import load_script

benchmark = load_script("benchmarks/peers.py")

# Stands for ultralytics' command: `yolo export model=NAME.yaml format=FORMAT imgsz=HEIGHT,WIDTH` writes NAME.FORMAT.
FAKE_YOLO = """#!{python}
import sys
import onnx, torch
from onnx import helper

options = dict(word.split("=") for word in sys.argv[2:])
name = options["model"].removesuffix(".yaml")
if name == "unknown":
    sys.exit("no model of this name")
size = [1, 3, *map(int, options["imgsz"].split(","))]
if options["format"] == "onnx":
    ends = [helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, size) for end in ("images", "output0")]
    node = helper.make_node("Relu", ["images"], ["output0"])
    model = helper.make_model(
        helper.make_graph([node], "yolo", ends[:1], ends[1:]), ir_version=9, opset_imports=[helper.make_opsetid("", 17)]
    )
    onnx.save(model, name + ".onnx")
else:
    torch.jit.trace(torch.nn.Conv2d(3, 2, 1), torch.zeros(size)).save(name + ".torchscript")
"""


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    command = tmp_path / "yolo"
    command.write_text(FAKE_YOLO.format(python=sys.executable))
    command.chmod(0o755)
    return command


def test_peers_are_made_by_their_own_command_and_timed_in_both_runtimes(
    tmp_path: Path, yolo: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--recipes", "--torchvision", "--yolo-command", str(yolo), "--yolo", "yolo99n", "--size", "32", "64"]
    json_file = tmp_path / "out.json"
    folders = ["--folder", str(tmp_path / "files"), "--json", str(json_file)]
    assert benchmark.main([*options, *folders, "--rounds", "1", "--threads", "1", "--bfloat16"]) == 0
    (row,) = json.loads(json_file.read_text())["rows"]
    assert (row["model"], row["whose"], row["parameters_M"]) == ("yolo99n", "ultralytics", 8e-6)
    times = row["runtimes_ms"]
    assert set(times) == {"PyTorch", "PyTorch, bfloat16", "ONNX Runtime"}
    assert row["ms"] == min(times["PyTorch"], times["ONNX Runtime"])
    assert "yolo99n" in capsys.readouterr().out


def test_a_command_that_fails_is_named_with_its_last_line(
    tmp_path: Path, yolo: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["--recipes", "--torchvision", "--yolo-command", str(yolo), "--yolo", "unknown"]
    assert benchmark.main([*options, "--folder", str(tmp_path / "files")]) == 1
    assert "failed (no model of this name)" in capsys.readouterr().err


def test_unknown_names_give_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert benchmark.main(["--recipes", "--torchvision", "no_such_net", "--folder", str(tmp_path)]) == 2
    assert "--torchvision no_such_net" in capsys.readouterr().err


@pytest.mark.long
def test_ours_are_measured_at_the_share_of_active_positions(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_config("fcos_sparse").dump())
    options = ["--recipes", str(tmp_path / "tiny.yaml"), "--torchvision", "--active", "25", "--size", "96", "128"]
    json_file = tmp_path / "out.json"
    folders = ["--folder", str(tmp_path / "files"), "--json", str(json_file)]
    assert benchmark.main([*options, *folders, "--rounds", "1", "--threads", "1"]) == 0
    (row,) = json.loads(json_file.read_text())["rows"]
    assert (row["whose"], row["active"]) == ("ours", 25)
    assert row["multiply_adds_G"] > 0
    assert set(row["runtimes_ms"]) == {"PyTorch", "ONNX Runtime"}
