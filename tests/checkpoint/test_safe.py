"""Checkpoints with live payloads are refused and not run; honest ones load."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

from d2_ext.checkpoint import safe
from d2_ext.checkpoint.safe import SafeCheckpointer, read_checkpoint
from d2_ext.errors import CheckpointError

import numpy as np
import pytest
import torch
from torch import nn


class _Payload:
    """Unpickling this makes a folder: proof that code ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def _load(path: Path) -> nn.Linear:
    model = nn.Linear(2, 1)
    SafeCheckpointer(model).load(str(path))
    return model


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth"])
def test_a_payload_is_refused_and_never_runs(tmp_path: Path, suffix: str) -> None:
    proof, path = tmp_path / "ran", tmp_path / f"model{suffix}"
    content = {"model": {"weight": torch.ones(1, 2), "bias": _Payload(proof)}, "__author__": "somebody"}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    says = "asks for torch" if suffix == ".pkl" else "mkdir"
    with pytest.raises(CheckpointError, match=rf"model\{suffix} was not loaded: .*{says}") as refused:
        _load(path)
    assert not proof.exists()
    assert "\x1b" not in str(refused.value)


def test_a_state_dict_loads(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])}}, tmp_path / "model.pth")
    assert _load(tmp_path / "model.pth").weight.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("protocol", [2, 4, 5])  # Python's own is 5 from 3.14 on
def test_a_zoo_pickle_of_arrays_loads(tmp_path: Path, protocol: int) -> None:
    arrays = {"weight": np.array([[4.0, 5.0]], np.float32), "bias": np.zeros(1, np.float32)}
    content = {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
    assert _load(tmp_path / "model.pkl").weight.tolist() == [[4.0, 5.0]]


def test_a_truncated_pickle_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": {"weight": np.zeros((9, 9))}})[:60])
    with pytest.raises(CheckpointError, match=r"model\.pkl is not a readable pickle"):
        _load(tmp_path / "model.pkl")


def test_a_missing_file_is_named_with_advice(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*nowhere\.pth.*MODEL\.WEIGHTS"):
        _load(tmp_path / "nowhere.pth")


def test_without_network_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not be fetched.*get the file elsewhere"):
        SafeCheckpointer(nn.Linear(1, 1)).load("http://127.0.0.1:9/model.pth")


def test_class_names_travel_in_the_checkpoint(tmp_path: Path) -> None:
    checkpointer = SafeCheckpointer(nn.Linear(2, 1), str(tmp_path))
    checkpointer.save("without")
    checkpointer.class_names = ("car", "van")
    checkpointer.save("with", iteration=3)
    assert checkpointer.load(str(tmp_path / "with.pth"))["class_names"] == ["car", "van"]
    assert "class_names" not in checkpointer.load(str(tmp_path / "without.pth"))


def _weights(**changed: Any) -> dict[str, Any]:
    return {"weight": torch.ones(1, 2), "bias": torch.zeros(1), **changed}


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.full((1, 2), float("nan")), "infinite or not a number"),
        (torch.full((1, 2), -float("inf")), "infinite or not a number"),
        (torch.ones(1, 2).to_sparse(), "sparse"),
        (torch.ones(1, 2).to_sparse_csr(), "sparse"),
        (torch.quantize_per_tensor(torch.ones(1, 2), 0.1, 0, torch.qint8), "quantized"),
        (torch.ones(1, 2, dtype=torch.complex64), "complex"),
        (torch.ones(1, 2, device="meta"), "without its values"),
    ],
    ids=["nan", "infinite", "sparse", "csr", "quantized", "complex", "meta"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_no_weight_is_named(tmp_path: Path, weight: torch.Tensor, says: str) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": _weights(weight=weight)}, path)
    for read in (_load, lambda p: read_checkpoint(str(p))):
        with pytest.raises(CheckpointError, match=f"a.pth was not loaded: it holds .*{says}.* under 'weight'"):
            read(path)


@pytest.mark.filterwarnings("ignore")
def test_a_nested_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"model": _weights(weight=torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]))}, path)
    for read in (_load, lambda p: read_checkpoint(str(p))):  # from 2.15 on, torch's own reader refuses it
        with pytest.raises(CheckpointError, match=r"a\.pth was not loaded: .*nested"):
            read(path)


@pytest.mark.parametrize("array", [np.full((1, 2), np.nan), np.ones((1, 2), object), np.ones((1, 2), complex)], ids=str)
def test_an_array_that_is_no_weight_is_named(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": {"weight": array, "bias": np.zeros(1)}}))
    with pytest.raises(CheckpointError, match=r"a\.pkl was not loaded: it holds (an array of|values).* under 'weight'"):
        _load(path)


@pytest.mark.parametrize("content", [_weights() | {None: torch.ones(1)}, {"model": _weights() | {None: 1}}], ids=str)
def test_weights_have_names(tmp_path: Path, content: dict[Any, Any]) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="under None"):
        _load(tmp_path / "a.pth")


@pytest.mark.parametrize("names", [5, "car", torch.ones(3), [1, 2]], ids=str)
def test_names_of_classes_are_a_list_of_text(tmp_path: Path, names: Any) -> None:
    torch.save({"model": _weights(), "class_names": names}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="under 'class_names', but a list of names was expected"):
        _load(tmp_path / "a.pth")


def test_an_old_torch_reads_files_only_if_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(_weights(), tmp_path / "a.pth")
    monkeypatch.setattr(safe, "SAFE_TORCH", "99.0")
    with pytest.raises(CheckpointError, match=r"CVE-2026-24747.*Install torch 99\.0 or newer, or set D2_EXT_TRUST"):
        _load(tmp_path / "a.pth")
    monkeypatch.setenv("D2_EXT_TRUST_CHECKPOINTS", "1")
    assert _load(tmp_path / "a.pth").weight.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (None, "model_0000003.pth was not loaded: memory ran out"),
        (errno.EMFILE, "Too many open files: .*model_0000003.pth"),
        (errno.EIO, "Input/output error: .*model_0000003.pth"),
    ],
)
@pytest.mark.parametrize(("owner", "call"), [(torch, "load"), (zipfile, "ZipFile")])
def test_a_shortage_lets_no_run_resume_from_an_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None, says: str, owner: Any, call: str
) -> None:
    checkpointer = SafeCheckpointer(nn.Linear(2, 2), str(tmp_path))
    for name in ("model_0000001", "model_0000003"):
        checkpointer.save(name)

    def short(*args: object, **kwargs: object) -> None:
        raise MemoryError if number is None else OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, call, short)
    with pytest.raises((CheckpointError, OSError), match=says):
        checkpointer.resume_or_load("")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"


def test_a_checkpoint_that_may_not_be_read_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpointer = SafeCheckpointer(nn.Linear(2, 2), str(tmp_path))
    for name in ("model_0000001", "model_0000003"):
        checkpointer.save(name)

    def denied(path: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(safe, "verify_archive", denied)
    with pytest.raises(PermissionError, match=r"model_0000003\.pth"):
        checkpointer.resume_or_load("")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
