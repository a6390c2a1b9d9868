"""Weights as safetensors: written, read, halved, and refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path

from d2_ext.checkpoint.safe import SafeCheckpointer, read_checkpoint
from d2_ext.checkpoint.safetensors_file import read_safetensors, write_safetensors
from d2_ext.errors import CheckpointError

import pytest
import safetensors.torch
import torch
from torch import nn


def test_weights_and_class_names_come_back_and_load(tmp_path: Path) -> None:
    path, model = tmp_path / "model.safetensors", nn.Linear(3, 2)
    write_safetensors(path, model.state_dict(), class_names=["car", "van"], metadata={"licence": "CC BY 4.0"})
    other = nn.Linear(3, 2)
    assert SafeCheckpointer(other, whole=True).load(str(path))["class_names"] == ["car", "van"]
    assert torch.equal(other.weight, model.weight)
    assert read_checkpoint(str(path))["class_names"] == ["car", "van"]
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_only_large_weights_are_halved_and_a_model_gets_them_in_float32(tmp_path: Path) -> None:
    path, model = tmp_path / "model.safetensors", nn.Linear(64, 32)
    write_safetensors(path, model.state_dict(), half=True)
    stored = read_safetensors(str(path))["model"]
    assert stored["weight"].dtype == torch.float16
    assert torch.equal(stored["bias"], model.bias)
    other = nn.Linear(64, 32)
    SafeCheckpointer(other, whole=True).load(str(path))
    assert other.weight.dtype == torch.float32
    torch.testing.assert_close(other.weight, model.weight, rtol=2**-11, atol=1e-7)
    with pytest.raises(CheckpointError, match="weight holds values beyond the range of float16"):
        write_safetensors(path, {"weight": torch.full((64, 32), 1e6)}, half=True)


@pytest.mark.parametrize("size", [0, 7, 60, -1])
def test_a_cut_file_is_refused_by_name(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, nn.Linear(3, 2).state_dict())
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is (no whole safetensors file|empty)"):
        SafeCheckpointer(nn.Linear(3, 2)).load(str(path))


@pytest.mark.parametrize("names", ["car", "5", json.dumps([1, 2]), json.dumps({"car": 1})])
def test_class_names_of_another_kind_are_refused(tmp_path: Path, names: str) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(2)}, path, {"class_names": names})
    with pytest.raises(CheckpointError, match="Expected a JSON list of texts"):
        read_safetensors(str(path))
