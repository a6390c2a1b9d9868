"""What files of every format have in common: they say what they are, and what is no such file is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError, ExportError
from d2_ext.export import SUFFIXES, eager_runtime, load_runtime, read_metadata
from d2_ext.export.formats import write_openvino
from d2_ext.export.metadata import METADATA_KEYS

import numpy as np
import pytest
import torch

from helpers.export_models import NUM_CLASSES, noise, tiny_model
from helpers.exported_files import ExportedFiles

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("kind", ["onnx", "torch", "openvino"])
def test_every_format_says_what_it_is(exported: ExportedFiles, kind: str) -> None:
    pytest.importorskip("openvino" if kind == "openvino" else "onnx")
    metadata = read_metadata(exported.path("fcos", kind))
    assert set(metadata) == set(METADATA_KEYS)
    assert metadata["class_names"] == ["car", "1", "2"]
    assert len(metadata["class_names"]) == NUM_CLASSES
    assert metadata["score_thresh"] == 0.05
    assert metadata["input_format"] == "BGR"
    assert metadata["meta_architecture"] == "FCOS"


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_image_without_an_active_position_gets_nothing_of_the_one_before(
    exported: ExportedFiles, tmp_path: Path, kind: str
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(kind)
    # The masks of a file that is there are shifted until a flat image has no active position, but noise has.
    model, images = copy.deepcopy(tiny_model("fcos_sparse")), noise(1, 3, 64, 96)
    flat, towers = images * 0, model.head.towers().values()
    with torch.no_grad():
        highest = []
        for x in (flat, images):
            maps = model.backbone(model.preprocess_image([{"image": x[0]}]).tensor)
            logits = [[tower.mask_conv(maps[key]).max() for key in model.head_in_features] for tower in towers]
            highest.append(torch.tensor(logits).amax(1))
        assert (highest[1] > highest[0]).all(), "the case is meant to have an image that is more active"
        old = torch.cat([tower.mask_conv.bias for tower in towers])
        new = old - (highest[0] + highest[1]) / 2
        for tower, bias in zip(towers, new):
            tower.mask_conv.bias.fill_(bias)
    graph = onnx.load(exported.path("fcos_sparse"))
    (stored,) = [x for x in graph.graph.initializer if list(x.dims)[:1] == [2] and onnx_values(x) == old.tolist()]
    stored.raw_data = new.numpy().tobytes()
    file = tmp_path / "shifted.onnx"
    onnx.save(graph, file)
    if kind == "openvino":
        write_openvino(file, file.with_suffix(".xml"), read_metadata(file), half=False)
    run, eager = load_runtime(file.with_suffix(SUFFIXES[kind]), threads=1), eager_runtime(model)
    for x in (flat, images, flat, images):
        ours, expected = run(x.numpy()), eager(x.numpy())
        assert ours.classes.tolist() == expected.classes.tolist()
        np.testing.assert_allclose(ours.boxes, expected.boxes, atol=2e-3)
        assert (len(ours.classes) > 0) == (x is images)


def onnx_values(tensor: Any) -> list[float]:
    """The numbers of an initializer."""
    return pytest.importorskip("onnx").numpy_helper.to_array(tensor).flatten().tolist()


def test_what_is_no_exported_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no exported file"):
        load_runtime(tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match=r"ends with one of \.onnx, \.pt2, \.xml"):
        load_runtime(tmp_path / "model.pth")
    for suffix in SUFFIXES.values():
        if suffix == ".xml":
            pytest.importorskip("openvino")
        broken = tmp_path / f"broken{suffix}"
        broken.write_bytes(b"no model")
        with pytest.raises(ExportError, match="cannot"):
            load_runtime(broken, trusted=True)
