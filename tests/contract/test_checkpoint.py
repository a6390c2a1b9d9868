"""Checkpoints: formats, names and messages; on either implementation of Detectron2."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts, convert_basic_c2_names
from detectron2.utils.file_io import PathManager
from torch import nn


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.stem = nn.Linear(2, 3)
        self.head = nn.Linear(3, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def _weights(prefix: str = "") -> dict[str, torch.Tensor]:
    model = _Net()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters(), start=1):
            parameter.fill_(number)
    return {prefix + name: value for name, value in model.state_dict().items()}


def _sums(model: nn.Module) -> list[float]:
    return [parameter.mean().item() for parameter in model.parameters()]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("is_bare", [False, True])
def test_pth_files_of_a_state_dict_with_or_without_wrapper(tmp_path: Path, prefix: str, is_bare: bool) -> None:
    weights = _weights(prefix)
    torch.save(weights if is_bare else {"model": weights, "iteration": 7, "note": "x"}, tmp_path / "a.pth")
    model = _Net()
    rest = DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert _sums(model) == [1.0, 2.0, 3.0, 4.0]
    assert rest == ({} if is_bare else {"iteration": 7, "note": "x"})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_zoo_pickles_hold_arrays(tmp_path: Path, protocol: int) -> None:
    arrays = {name: value.numpy() for name, value in _weights().items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}, protocol=protocol))
    model = _Net()
    assert DetectionCheckpointer(model).load(str(tmp_path / "a.pkl")) == {"__author__": "zoo"}
    assert _sums(model) == [1.0, 2.0, 3.0, 4.0]


def test_caffe2_pickles_lose_their_momentum_and_get_new_names(tmp_path: Path) -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.res2 = nn.Sequential(nn.Module())
            self.res2[0].conv1 = nn.Conv2d(1, 1, 1, bias=False)
            self.res2[0].conv1.norm = nn.BatchNorm2d(1)

    blobs = {
        "res2_0_branch2a_w": np.full((1, 1, 1, 1), 5, dtype=np.float32),
        "res2_0_branch2a_bn_s": np.full(1, 6, dtype=np.float32),
        "res2_0_branch2a_bn_b": np.full(1, 7, dtype=np.float32),
        "res2_0_branch2a_w_momentum": np.zeros(1, dtype=np.float32),
    }
    for name, data in {"imagenet": blobs, "detector": {"blobs": blobs, "cfg": "text"}}.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(data, protocol=2))
        model = nn.ModuleDict({"bottom_up": Backbone()})
        rest = DetectionCheckpointer(model).load(str(tmp_path / f"{name}.pkl"))
        assert rest == {"__author__": "Caffe2", "matching_heuristics": True}
        assert _sums(model) == [5.0, 6.0, 7.0]


def test_names_are_matched_by_their_endings_if_the_path_asks_for_it(tmp_path: Path) -> None:
    torch.save({"model": {"stem.weight": torch.ones(3, 2)}}, tmp_path / "a.pth")
    model = _Net()
    DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert _sums(model) == [0.0] * 4
    rest = DetectionCheckpointer(model).load(str(tmp_path / "a.pth") + "?matching_heuristics=True")
    assert rest == {"matching_heuristics": True}
    assert _sums(model) == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="nope"):
        DetectionCheckpointer(_Net()).load(str(tmp_path / "a.pth") + "?nope=1")


def test_wrong_shapes_missing_and_unknown_names_are_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = _weights()
    weights["head.weight"] = torch.ones(5, 5)
    del weights["head.bias"]
    weights["extra.weight"] = torch.ones(1)
    weights["anchor_generator.cell_anchors.0"] = torch.ones(1)
    torch.save(weights, tmp_path / "a.pth")
    model = _Net()
    model.register_buffer("pixel_mean", torch.zeros(3))
    DetectionCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert _sums(model) == [1.0, 2.0, 0.0, 0.0]
    assert "'head.weight' to the model due to incompatible shapes: (5, 5) in the checkpoint but (1, 3)" in caplog.text
    assert "not found in the checkpoint" in caplog.text
    assert "extra" in caplog.text
    assert not {"cell_anchors", "pixel_mean"} & {*re.findall(r"\w+", caplog.text)}  # no reason for a warning
    torch.save({"model": {"head.weight": "text"}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"head\.weight"):
        DetectionCheckpointer(_Net()).load(str(tmp_path / "a.pth"))


def test_an_empty_path_loads_nothing_and_a_wrong_one_fails() -> None:
    assert DetectionCheckpointer(_Net()).load("") == {}
    checkpointer = DetectionCheckpointer(_Net())
    with pytest.raises((AssertionError, OSError)):
        checkpointer.load("/nowhere/a.pth")


def test_saving_writes_model_checkpointables_and_extras(tmp_path: Path) -> None:
    model = _Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    assert not checkpointer.has_checkpoint()
    checkpointer.save("model_x", iteration=5)
    assert sorted(torch.load(tmp_path / "model_x.pth")) == ["iteration", "model", "optimizer"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_x.pth"

    optimizer.param_groups[0]["lr"] = 0.25
    other = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    assert other.resume_or_load("ignored.pth", resume=True) == {"iteration": 5}
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.param_groups[0]["lr"] = 0.25
    rest = other.resume_or_load(str(tmp_path / "model_x.pth"), resume=False)
    assert sorted(rest) == ["iteration", "optimizer"]
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_nothing_is_saved_where_saving_is_off_and_the_path_manager_is_the_own_one(tmp_path: Path) -> None:
    DetectionCheckpointer(_Net(), str(tmp_path), save_to_disk=False).save("x")
    assert list(tmp_path.iterdir()) == []
    checkpointer = DetectionCheckpointer(_Net())
    assert checkpointer.path_manager is PathManager
    assert PeriodicCheckpointer(checkpointer, 1).path_manager is PathManager


def _ids(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.full((1,), float(number)) for number, name in enumerate(names, start=1)}


def test_the_longest_ending_wins_and_endings_are_whole_parts() -> None:
    model = _ids("body.res2.conv1.weight", "body.conv1.weight", "head.myconv1.weight")
    found = align_and_update_state_dicts(model, _ids("conv1.weight", "res2.conv1.weight"), c2_conversion=False)
    assert {name: value.item() for name, value in found.items()} == {
        "body.conv1.weight": 1.0, "body.res2.conv1.weight": 2.0
    }  # fmt: skip


def test_unmatched_weights_keep_their_names_and_ambiguous_ones_are_refused(
    d2_log: pytest.LogCaptureFixture,
) -> None:
    found = align_and_update_state_dicts(_ids("a.x", "a.y"), _ids("x", "y", "z"), c2_conversion=False)
    assert set(found) == {"a.x", "a.y", "z"}
    assert [record.levelname for record in d2_log.records] == ["INFO"]
    assert set(align_and_update_state_dicts(_ids("a.x"), _ids("q"), c2_conversion=False)) == {"q"}
    assert [record.levelname for record in d2_log.records] == ["INFO", "WARNING"]
    found = align_and_update_state_dicts(_ids("a.x", "a.y"), {**_ids("x"), "y": torch.ones(2)}, c2_conversion=False)
    assert set(found) == {"a.x", "y"}
    assert any("a.y" in record.getMessage() for record in d2_log.records if record.levelname == "WARNING")
    with pytest.raises(ValueError, match=r"'x'|multiple keys"):
        align_and_update_state_dicts(_ids("a.x", "b.x"), _ids("x"), c2_conversion=False)


def test_caffe2_names_of_backbones() -> None:
    names = {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_s": "stem.conv1.norm.weight",
        "res_conv1_bn_b": "stem.conv1.norm.bias",
        "res2_0_branch1_w": "res2.0.shortcut.weight",
        "res3_1_branch2a_bn_s": "res3.1.conv1.norm.weight",
        "res3_1_branch2b_bn_riv": "res3.1.conv2.norm.running_var",
        "res3_1_branch2b_bn_rm": "res3.1.conv2.norm.running_mean",
        "res5_2_branch2c_gn_b": "res5.2.conv3.norm.bias",
        "res4_0_branch2a_bn_running_mean": "res4.0.conv1.norm.running_mean",
        "res4_0_branch2a_bn_running_var": "res4.0.conv1.norm.running_var",
        "res4_0_branch2a_bn_gamma": "res4.0.conv1.norm.weight",
        "res4_0_branch2a_bn_beta": "res4.0.conv1.norm.bias",
        "pred_w": "linear.weight",
        "pred_b": "linear.bias",
    }
    assert convert_basic_c2_names(list(names)) == list(names.values())
