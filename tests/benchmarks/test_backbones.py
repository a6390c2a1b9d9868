from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from d2_ext.modeling.backbone import VOVNET_SPECS, MogaNet, VoVNet

import pytest
import torch

from helpers.quick_weights import quick_weights
from helpers.scripts import load_script

backbones = load_script("benchmarks/backbones.py")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What takes the place of the ResNet-50 that all are compared with is a quarter of it."""
    monkeypatch.setitem(backbones.RESNETS, backbones.REFERENCE, 18)
    with quick_weights():
        yield


def test_it_measures_and_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "backbones.json"
    models = ["R-18", "V-19-slim-dw-eSE", "MogaNet-xtiny"]
    assert (
        backbones.main(["--models", *models, "--size", "64", "64", "--repeats", "1", "--train", "--json", str(path)])
        == 0
    )
    content = json.loads(path.read_text())
    assert {"machine", "date", "commit"} < set(content)
    assert [row["backbone"] for row in content["rows"]] == models
    for row in content["rows"]:
        assert row["size"] == [64, 64]
        assert row["fold_error"] <= 1e-5
        assert row["fold_speedup"] == pytest.approx(row["latency_ms"] / row["folded_ms"])
        assert row["ratio_r50"] == pytest.approx(row["latency_ms"] / row["r50_ms"])
        assert row["fold_same_layout"] == pytest.approx(row["channels_last_ms"] / row["folded_ms"])
        assert row["peak_mb"] > 0
        assert row["train_peak_mb"] > row["peak_mb"]
        if row["backbone"] != "R-18":
            assert row["recompute_peak_mb"] < row["train_peak_mb"]
    assert "V-19-slim-dw-eSE" in capsys.readouterr().out


def test_all_backbones_and_the_resnets_are_known() -> None:
    assert len(backbones.known_models()) == 3 + 13 + 1 + 6
    with pytest.raises(SystemExit):
        backbones.main(["--models", "V-40"])


def test_a_run_is_extended_by_missing_rows_only_and_stays_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "backbones.json"
    small = ["--size", "64", "64", "--repeats", "3", "--max-seconds", "0", "--json", str(path)]
    assert backbones.main(["--models", "V-19-slim-dw-eSE", *small]) == 0
    first = json.loads(path.read_text())["rows"]
    monkeypatch.setattr(backbones, "build_timm", lambda name: None)
    assert backbones.main(["--models", "R-18", "V-19-slim-dw-eSE", "--extend", *small]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["backbone"] for row in rows] == ["R-18", "V-19-slim-dw-eSE"]
    assert rows[1] == first[0]
    path.write_text(json.dumps({"machine": "another", "commit": "abc", "rows": []}))
    with pytest.raises(SystemExit):
        backbones.main(["--extend", *small])
    assert "measured on machine 'another'" in capsys.readouterr().err


def test_timm_s_counterparts_exist_and_have_about_the_same_size() -> None:
    timm = pytest.importorskip("timm")
    for ours, theirs in backbones.TIMM_NAMES.items():
        assert timm.is_model(theirs)
        with torch.device("meta"):
            sizes = [sum(p.numel() for p in net.parameters()) for net in (backbones.build_timm(ours), meta(ours))]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.2), ours


def meta(name: str) -> torch.nn.Module:
    """A backbone of ours without its frozen norms, as its counterpart counts its parameters."""
    if name in VOVNET_SPECS:
        return VoVNet(body=name, norm="BN")
    return MogaNet(arch=name.removeprefix("MogaNet-"))
