"""What files of every format have in common: they say what they are, and what is no such file is refused."""

from __future__ import annotations

from pathlib import Path

from d2_ext.errors import ConfigError, ExportError
from d2_ext.export import SUFFIXES, load_runtime, read_metadata
from d2_ext.export.metadata import METADATA_KEYS

import pytest

from helpers.export_models import NUM_CLASSES
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
