"""Checkpoint files with live payloads: nothing of them runs, and the error names the file and the object."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn


class _Payload:
    """Calls ``function(*args)`` when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def _load(file: Path) -> dict[str, Any]:
    return DetectionCheckpointer(nn.Linear(2, 1)).load(str(file))


def _arrays() -> dict[str, np.ndarray]:
    return {"weight": np.ones((1, 2), dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_would_run_a_command_is_refused(tmp_path: Path, protocol: int) -> None:
    victim, file = tmp_path / "victim", tmp_path / "evil.pkl"
    payload = _Payload(os.system, f"touch {victim}")
    file.write_bytes(pickle.dumps({"model": _arrays(), "__author__": "x", "extra": payload}, protocol=protocol))
    with pytest.raises(pickle.UnpicklingError, match=r"evil\.pkl.*refers to (posix|nt)\.system"):
        _load(file)
    assert not victim.exists()
    pickle.loads(file.read_bytes())  # the payload is live: an unrestricted reader runs it
    assert victim.exists()


@pytest.mark.parametrize("is_zip", [True, False])  # the format of today's PyTorch, and the old one
def test_a_torch_file_that_would_run_a_command_is_refused(tmp_path: Path, is_zip: bool) -> None:
    victim, good, evil = (tmp_path / name for name in ("victim", "good.pth", "evil.pth"))
    data: dict[str, Any] = {"weight": torch.full((1, 2), 3.0), "bias": torch.zeros(1)}
    torch.save(data, good, _use_new_zipfile_serialization=is_zip)
    model = nn.Linear(2, 1)
    DetectionCheckpointer(model).load(str(good))
    assert model.weight.tolist() == [[3.0, 3.0]]
    data["extra"] = _Payload(os.system, f"touch {victim}")
    torch.save(data, evil, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(pickle.UnpicklingError, match=r"evil\.pth"):
        _load(evil)
    assert not victim.exists()
    torch.load(evil, weights_only=False)
    assert victim.exists()


def test_the_default_of_torch_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable by which users turn the safe default off."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    seen: list[Any] = []
    original = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **kw: seen.append(kw["weights_only"]) or original(*args, **kw))
    torch.save(nn.Linear(2, 1).state_dict(), tmp_path / "a.pth")
    _load(tmp_path / "a.pth")
    assert seen == [True]


@pytest.mark.parametrize(
    "payload",
    [
        _Payload(eval, "1"),
        _Payload(getattr, "", "join"),
        _Payload(__import__, "os"),
        _Payload(np.load, "x"),
        _Payload(np.fromfile, "x"),
        _Payload(torch.load, "x"),
        _Payload(bytes, 10),
        Path("x"),
        collections.Counter("a"),
    ],
    ids=lambda payload: getattr(payload, "call", (type(payload),))[0].__name__,
)
def test_everything_but_arrays_and_plain_containers_is_refused(tmp_path: Path, payload: Any) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": _arrays(), "__author__": payload}))
    with pytest.raises(pickle.UnpicklingError, match=r"a\.pkl was not loaded, because it refers to "):
        _load(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.", "codec 'zlib'"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "persistent id"),
    ],
)
def test_other_codecs_and_persistent_ids_are_refused(tmp_path: Path, stream: bytes, reason: str) -> None:
    (tmp_path / "a.pkl").write_bytes(stream)
    with pytest.raises(pickle.UnpicklingError, match=reason):
        _load(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_scalars_and_containers_are_read_from_every_protocol(tmp_path: Path, protocol: int) -> None:
    extras = {
        "ordered": collections.OrderedDict(a=1), "set": {1, 2}, "frozen": frozenset("x"), "bytes": b"\xff\x00",
        "none": None, "tuple": (1, 2.5, "ä"), "scalar": np.float64(1.5), "int": np.int32(3), "bool": np.bool_(True),
        "type": np.dtype("float16"), "order": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "text": np.array(["ab"]),
    }  # fmt: skip
    data = {"model": _arrays(), "__author__": "zoo", **extras}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    rest = _load(tmp_path / "a.pkl")
    assert set(rest) == {"__author__", *extras}
    assert rest["order"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert rest["text"].tolist() == ["ab"]
    for name in set(extras) - {"order", "text"}:
        assert rest[name] == extras[name], name
        assert type(rest[name]) is type(extras[name]), name


def test_files_of_python_2_and_of_old_numpy_are_read(tmp_path: Path) -> None:
    """Protocol 2 with text of Python 2 (latin-1 bytes of the array) and the module's old name."""
    stream = (
        b"\x80\x02}(U\x05modelq\x01}U\x06weightcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        b"K\x00\x85U\x01b\x87R(K\x01K\x01K\x02\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + np.array([1.5, -2.0], dtype="<f4").tobytes() + b"tbs"
        b"U\x0a__author__U\x05caf\xe9!u."
    )
    (tmp_path / "old.pkl").write_bytes(stream)
    model = nn.Linear(2, 1)
    assert DetectionCheckpointer(model).load(str(tmp_path / "old.pkl")) == {"__author__": "café!"}
    assert model.weight.tolist() == [[1.5, -2.0]]
