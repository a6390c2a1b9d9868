"""Bad checkpoints: an honest one of the run's own model, and one thing done to it."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faults.case import Case

PROOF = "code_ran"  # a folder that exists if code of a file was run


class Payload:
    """Unpickling this makes a folder below the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (PROOF,)


Weights = dict[str, torch.Tensor]


def _state(what: str, change: Callable[[Weights], Any], *says: str, file: str = "model.pth") -> Case:
    """Another state dict; ``given`` gets the folder, and the honest weights from ``folder / "honest.pth"``."""

    def make(folder: Path) -> None:
        torch.save(change(torch.load(folder / "honest.pth", weights_only=True)), folder / file)

    return Case(what, file, (file, *says), 1, make)


def _bytes(what: str, change: Callable[[bytes], bytes], *says: str, file: str = "model.pth") -> Case:
    """Other bytes than those of the honest file."""

    def make(folder: Path) -> None:
        (folder / file).write_bytes(change((folder / "honest.pth").read_bytes()))

    return Case(what, file, (file, *says), 1, make)


def _pickle(what: str, content: Callable[[Weights], Any], *says: str) -> Case:
    def make(folder: Path) -> None:
        weights = torch.load(folder / "honest.pth", weights_only=True)["model"]
        (folder / "model.pkl").write_bytes(pickle.dumps(content(weights)))

    return Case(what, "model.pkl", ("model.pkl", *says), 1, make)


def _model(change: Callable[[Weights], Any]) -> Callable[[Any], Any]:
    return lambda content: {"model": change(content["model"])}


def _half(weights: Weights) -> Weights:
    names = sorted(weights)
    return {name: weights[name] for name in names[: len(names) // 2]}


def _other_classes(weights: Weights) -> Weights:
    return {n: w[:2].clone() if "cls_logits" in n else w for n, w in weights.items()}


def _bomb(_: bytes) -> bytes:
    """A zip of some kilobytes that unpacks to 50 MB; the principle is the same for 50 GB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    return buffer.getvalue()


def _arrays(weights: Weights) -> dict[str, np.ndarray]:
    return {name: weight.numpy() for name, weight in weights.items()}


def _nested(depth: int) -> bytes:
    return b"(" * depth + b"l" * depth + b"."


WRONG_CONTENT = [
    _state("weights of another model", _model(lambda w: {"features.0.weight": torch.ones(3)}), "none of its 1 names"),
    _state("nothing in it", _model(lambda w: {}), "none of its 0 names"),
    _state("half of the weights", _model(_half), "are missing"),
    _state("one weight missing", _model(lambda w: dict(sorted(w.items())[1:])), "1 are missing"),
    _state("extra prefix", _model(lambda w: {f"student.{n}": v for n, v in w.items()}), "'student.'", "take that off"),
    _state("other number of classes", _model(_other_classes), "cls_logits", "(2,", "(4,"),
    _state(
        "transposed weight",
        _model(lambda w: {n: v.transpose(0, 1) if v.ndim == 4 else v for n, v in w.items()}),
        "another shape",
    ),
    _state("list instead of weights", lambda c: [1, 2], "holds a list"),
    _state("text instead of weights", lambda c: "hello", "holds a str"),
    _state("number instead of weights", lambda c: {"model": 7}, "holds a int"),
    _state("number instead of a weight", _model(lambda w: {**w, "iteration": 7}), "'iteration'"),
    _state("number instead of a name", _model(lambda w: {3: torch.ones(1)}), "under 3"),
]
UNSAFE = [
    _state("code in a weight", _model(lambda w: {**w, "x": Payload()}), "was not loaded", "could run code"),
    _state("code beside the weights", lambda c: {**c, "optimizer": [{"deep": (Payload(),)}]}, "could run code"),
    _state("code in a file of pycls", lambda c: {"model_state": {"x": Payload()}}, "could run code", file="model.pyth"),
    _state("a whole module", lambda c: torch.nn.Linear(2, 2), "could run code"),
    _pickle("code in a pickle", lambda w: {"model": {"x": Payload()}}, "could run code"),
    _pickle(
        "code deep in a pickle", lambda w: {"model": _arrays(w), "extra": [[{"y": (Payload(),)}]]}, "could run code"
    ),
    _pickle("function as a value", lambda w: {"model": {"x": print}}, "builtins.print"),
    _bytes("zip bomb", _bomb, "unpack to 50000000"),
]
DAMAGED = [
    _bytes("cut in the middle", lambda b: b[: len(b) // 2], "was not loaded"),
    _bytes("last kilobyte missing", lambda b: b[:-1024], "was not loaded"),
    _bytes("empty", lambda b: b"", "empty (0 bytes)"),
    _bytes("html page of a failed download", lambda b: b"<html>404</html>", "was not loaded"),
    _bytes("pointer of git-lfs", lambda b: b"version https://git-lfs.github.com/spec/v1\n", "was not loaded"),
    _bytes("zeros", lambda b: bytes(len(b) // 100), "was not loaded"),
    _bytes("wrong bytes in the pickle", lambda b: b.replace(b"OrderedDict", b"OrderedDuck"), "was not loaded"),
    _bytes("wrong bytes in the directory", lambda b: b[:-60] + bytes(60), "was not loaded"),
    _bytes("image", lambda b: b"\x89PNG\r\n\x1a\n" + bytes(100), "was not loaded"),
    _bytes("not a pickle", lambda b: b"hello", "not a readable pickle", file="model.pkl"),
    _bytes(
        "pickle cut in the middle",
        lambda b: pickle.dumps({"model": [1.0] * 99})[:80],
        "not a readable pickle",
        file="model.pkl",
    ),
    _bytes("pickle of a list", lambda b: pickle.dumps([1, 2]), "holds a list", file="model.pkl"),
    _bytes("endless nesting", lambda b: _nested(100_000), "model.pkl", file="model.pkl"),
    _bytes(
        "pickle of half a terabyte",
        lambda b: b"\x80\x04\x8e" + (2**39).to_bytes(8, "little"),
        "not a readable pickle",
        file="model.pkl",
    ),
    Case("missing", "nowhere.pth", ("nowhere.pth", "There is no checkpoint"), 1, lambda folder: None),
    Case("a folder", "weights.pth", ("weights.pth", "is a folder"), 1, lambda folder: (folder / "weights.pth").mkdir()),
]

CHECKPOINT_CASES = [*WRONG_CONTENT, *UNSAFE, *DAMAGED]
