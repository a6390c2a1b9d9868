"""The command line of the converter: files, reports, exit codes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from d2_ext.cli import convert_checkpoint as tool

import pytest
import torch

from helpers.failing_calls import small_files
from helpers.scripts import ROOT

CONFIG = str(ROOT / "configs/VisDrone/retinanet_R18_FPN512.yaml")
SMALL = ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CONVS", "1"]


def stem(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Enough of a ResNet of torchvision to be recognized."""
    return {
        "conv1.weight": torch.ones(64, 3, 7, 7),
        "bn1.weight": torch.ones(64),
        "layer1.0.conv1.weight": torch.ones(64, 64, 3, 3),
        **more,
    }


def test_a_file_is_converted_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(stem(**{"fc.weight": torch.ones(10, 512)}), tmp_path / "in.pth")
    output = tmp_path / "deep" / "out.pth"
    argv = ["--source", "torchvision", "--input", str(tmp_path / "in.pth"), "--output", str(output)]
    assert tool.main([*argv, "--config-file", CONFIG, *SMALL]) == 0
    saved = torch.load(output, weights_only=True)
    assert set(saved["model"]) == {
        "backbone.bottom_up.stem.conv1.weight",
        "backbone.bottom_up.stem.conv1.norm.weight",
        "backbone.bottom_up.res2.0.conv1.weight",
    }
    printed = capsys.readouterr().out
    assert "matched: 3\n  backbone.bottom_up.stem.conv1.weight" in printed
    assert "unexpected: 1\n  backbone.bottom_up.linear.weight" in printed
    assert "  head.cls_score.weight" in printed
    assert [p.name for p in output.parent.iterdir()] == ["out.pth"]


def test_without_a_config_nothing_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"state_dict": stem()}, tmp_path / "in.pth")
    argv = ["--source", "torchvision", "--input", str(tmp_path / "in.pth"), "--output", str(tmp_path / "out.pth")]
    assert tool.main(argv) == 0
    assert "Not compared" in capsys.readouterr().out
    assert "stem.conv1.weight" in torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert tool.main(argv) == 2  # it exists now
    assert "--overwrite" in capsys.readouterr().err
    assert tool.main([*argv, "--overwrite"]) == 0


class _Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran_code"),)


def test_files_that_cannot_be_used_give_1_and_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"x": _Evil()}}, "evil.pth")
    Path("evil.pkl").write_bytes(pickle.dumps({"x": _Evil()}))
    Path("cut.pth").write_bytes(b"PK\x03\x04")
    torch.save({"other.weight": torch.ones(1)}, "other.pth")
    for name, message in (
        ("evil.pth", "run code"),
        ("evil.pkl", "could run code"),
        ("cut.pth", "damaged"),
        ("other.pth", "No ResNet of torchvision"),
        ("absent.pth", "absent.pth"),
    ):
        assert tool.main(["--source", "torchvision", "--input", name, "--output", "out.pth"]) == 1
        assert message in capsys.readouterr().err
    assert not Path("out.pth").exists()
    assert not Path("ran_code").exists()


def test_a_head_that_does_not_fit_is_refused_until_it_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = {f"backbone.{k}": v for k, v in stem().items()} | {
        "bbox_head.retina_cls.bias": torch.ones(27),
        "bbox_head.retina_reg.weight": torch.ones(36, 16, 3, 3),
    }
    torch.save(file, tmp_path / "in.pth")
    argv = ["--source", "ceasc-mmdet", "--input", str(tmp_path / "in.pth"), "--output", str(tmp_path / "out.pth")]
    argv += ["--config-file", CONFIG]
    assert tool.main([*argv, *SMALL]) == 1
    assert "head.cls_score.bias" in capsys.readouterr().err
    assert tool.main([*argv, "--drop-head", *SMALL]) == 0
    assert "wrong shape: 1\n  head.cls_score.bias: (27,) in the file, (90,) in the model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["MODEL.DEVICE", "cpu"], "--config-file"),
        (["--config-file", "configs/nothing.yaml"], "no file"),
        (["--config-file", CONFIG, "MODEL.NOTHING", "1"], "MODEL.NOTHING"),
    ],
)
def test_wrong_usage_gives_2(tmp_path: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    argv = ["--source", "torchvision", "--input", "x.pth", "--output", str(tmp_path / "out.pth"), *extra]
    assert tool.main(argv) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        tool.main(["--source", "nothing", "--input", "x.pth", "--output", "y.pth"])
    assert stop.value.code == 2


def test_the_help_has_examples() -> None:
    assert tool.argument_parser().format_help().count("python tools/convert_checkpoint.py") == 4


def test_a_trained_model_becomes_a_small_file_to_pass_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = {"model": {"head.weight": torch.full((64, 64), 0.1)}, "optimizer": {"state": {}}, "class_names": ["car"]}
    torch.save(content, tmp_path / "in.pth")
    argv = ["--source", "d2_ext", "--input", str(tmp_path / "in.pth"), "--half"]
    assert tool.main([*argv, "--output", str(tmp_path / "out.safetensors")]) == 0
    read = tool.read_checkpoint(str(tmp_path / "out.safetensors"))
    assert read["class_names"] == ["car"]
    assert list(read["model"]) == ["head.weight"]
    assert (tmp_path / "out.safetensors").stat().st_size < 64 * 64 * 2 + 500
    assert tool.main([*argv, "--output", str(tmp_path / "out.pth")]) == 2
    assert "--half: out.pth keeps float32" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_is_one_error_that_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, suffix: str
) -> None:
    torch.save(stem(), tmp_path / "in.pth")
    output = tmp_path / f"out{suffix}"
    with small_files(10_000):
        assert tool.main(["--source", "torchvision", "--input", str(tmp_path / "in.pth"), "--output", str(output)]) == 1
    assert f"error: {output} could not be written: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]
