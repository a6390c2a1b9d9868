"""Exported tiny detectors, each written once for all processes of a run; and their comparison with the model."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from d2_ext.export import (
    SUFFIXES,
    Comparison,
    ExportableDetector,
    compare,
    convert_onnx,
    describe,
    eager_runtime,
    export_file,
    load_runtime,
)
from d2_ext.export.runtimes import Runtime
from d2_ext.export.sparse_towers import gathered_maps

import pytest

from helpers.export_models import noise, tiny_config, tiny_model
from helpers.shared import locked

SHAPES = [(1, 3, 64, 96), (3, 3, 90, 124), (2, 3, 200, 44)]  # recorded with (2, 3, 288, 352)
# Every meta-architecture; FCOS's sparse head stands for gathered rows, those of the others for masked maps.
# What the long ones are made of is in the others, too: anchors, towers, masks, distributions.
ARCHITECTURES = ("fcos", "fcos_sparse", "defcn", "retinanet_ceasc", "gfl")
LONG_ARCHITECTURES = ("fcos_sparse_ln", "defcn_sparse", "retinanet", "gfl_ceasc")


def architectures(*names: str) -> list[Any]:
    """Cases of a test; those of ``LONG_ARCHITECTURES`` with the mark."""
    return [pytest.param(name, marks=[pytest.mark.long] if name in LONG_ARCHITECTURES else []) for name in names]


class ExportedFiles:
    """Files of ``helpers.export_models``, written when they are first asked for.

    Args:
        folder: for all of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, kind: str = "onnx", weights: str = "float32") -> Path:
        """An exported detector."""
        path = self.folder / f"{name}_{weights}{SUFFIXES[kind]}"
        plain = None if kind == "torch" or (kind, weights) == ("onnx", "float32") else self.path(name)
        with locked(path):
            if not path.is_file():
                self._write(path, name, kind, weights, plain)
        return path

    def _write(self, path: Path, name: str, kind: str, weights: str, plain: Path | None) -> None:
        model = tiny_model(name)
        options: dict[str, Any] = {"tower_pass": gathered_maps} if name.startswith("fcos_sparse") else {}
        given = {"class_names": ["car"], "input_format": "BGR", "input_dtype": "uint8", "weights": weights}
        metadata = describe(tiny_config(name), model, **given)
        if plain is None:
            export_file(ExportableDetector(model, **options), path, kind, metadata)
        else:  # what export_file does after the same first step, which takes longest
            calibration = [noise(1, 3, 96, 128, seed=seed).numpy() for seed in range(3)]
            convert_onnx(plain, path, kind, metadata, calibration=calibration)


@functools.cache
def opened(path: Path) -> Runtime:
    """The runtime of a file, one for each."""
    return load_runtime(path, threads=1, trusted=True)


def compared(path: Path, name: str, shape: tuple[int, ...]) -> Comparison:
    """What a file detects in noise beside what the model does."""
    model, images = tiny_model(name), noise(*shape).numpy()
    limits = {"score_thresh": model.test_score_thresh, "max_detections": model.max_detections_per_image}
    return compare([eager_runtime(model)(images)], [opened(path)(images)], **limits)


def assert_detects_the_same(path: Path, name: str) -> None:
    """At every size and batch of ``SHAPES``."""
    for shape in SHAPES:
        found = compared(path, name, shape)
        assert found.images == shape[0], "the case is meant to have detections in every image"
        assert found.matched == found.detections
        assert found.unmatched == 0
        assert found.max_box_diff < 2e-3
        assert found.max_score_diff < 1e-5
