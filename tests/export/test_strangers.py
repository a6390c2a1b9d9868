"""Exported files from strangers: refused before a runtime opens them, and nothing of them is executed."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from d2_ext.errors import ExportError
from d2_ext.export import load_runtime, read_metadata
from d2_ext.export.metadata import METADATA_KEYS, METADATA_NODE, parse_metadata

import numpy as np
import pytest
import torch
from faults.checkpoint_cases import PROOF, Payload

from helpers.strange_files import METADATA, STRANGE, TEXTS, small_detector

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, which must have no proof afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path(PROOF).exists(), "code of the file was run"


# --- .pt2: torch runs code of them, so they need a word of trust ---


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x]) * self.factor


@pytest.fixture(scope="module")
def honest_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "honest.pt2"
    free = torch.export.Dim.DYNAMIC
    program = torch.export.export(Scaled(), (torch.zeros(2, 3),), dynamic_shapes=({0: free},))
    torch.export.save(program, path, extra_files={"d2_ext.json": json.dumps(TEXTS)})
    return path


def rewritten(source: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """``a.pt2`` with parts that were changed."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile("a.pt2", "w") as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)))
    return Path("a.pt2")


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": Payload()}, buffer)
    return buffer.getvalue()


def with_expression(name: str, content: bytes) -> bytes:
    """An expression of a size that sympy would evaluate."""
    if not name.endswith("models/model.json"):
        return content
    call = f"__import__('os').mkdir('{PROOF}')"

    def replace(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: call if key == "expr_str" else replace(inner) for key, inner in value.items()}
        return [replace(inner) for inner in value] if isinstance(value, list) else value

    return json.dumps(replace(json.loads(content))).encode()


def with_pickled_inputs(name: str, content: bytes) -> bytes:
    return pickled() if "sample_inputs" in name else content


def with_pickled_weight(name: str, content: bytes) -> bytes:
    if name.endswith("model_weights_config.json"):
        return content.replace(b'"use_pickle":false', b'"use_pickle":true').replace(
            b'"use_pickle": false', b'"use_pickle": true'
        )
    return pickled() if "/data/weights/weight_" in name else content


ATTACKS = {
    "expression": with_expression,
    "sample inputs": with_pickled_inputs,
    "weight": with_pickled_weight,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_of_torch_is_opened_only_with_a_word_of_trust(honest_program: Path, attack: str) -> None:
    path = rewritten(honest_program, ATTACKS[attack])
    with pytest.raises(ExportError, match="can run code of a .pt2.*trusted=True"):
        load_runtime(path)
    assert read_metadata(path) == METADATA


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attacks_are_live(honest_program: Path, attack: str) -> None:
    """So that the test above proves something: torch itself runs them, and so do we for whom it trusts."""
    path = rewritten(honest_program, ATTACKS[attack])
    with pytest.raises(ExportError):
        load_runtime(path, trusted=True)
    os.rmdir(PROOF)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no archive", "cannot be read"),
        (b"PK\x03\x04" + bytes(40), "cannot be read"),
        ({"a/extra/d2_ext.json": b"{"}, "cannot be read"),
        ({"a/extra/d2_ext.json": b"[" * 100_000}, "cannot be read"),
        ({"a/extra/d2_ext.json": b"[1]"}, "no metadata"),
        ({"a/extra/d2_ext.json": json.dumps({"class_names": 5}).encode()}, "no metadata"),
        ({"a/extra/d2_ext.json": b"{}", "b/extra/d2_ext.json": b"{}"}, "no metadata"),
        ({}, "no metadata"),
    ],
    ids=str,
)
def test_damaged_programs_are_one_error(content: bytes | dict[str, bytes], says: str) -> None:
    if isinstance(content, bytes):
        Path("a.pt2").write_bytes(content)
    else:
        with zipfile.ZipFile("a.pt2", "w") as archive:
            for name, part in content.items():
                archive.writestr(name, part)
    with pytest.raises(ExportError, match=says):
        read_metadata("a.pt2")
    with pytest.raises(ExportError, match="cannot be opened"):
        load_runtime("a.pt2", trusted=True)


# --- metadata: the same keys in all formats ---


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("d2_ext", "2"),
        ("d2_ext", "true"),
        ("class_names", "[]"),
        ("class_names", "5"),
        ("class_names", "[1]"),
        ("class_names", "["),
        ("class_names", "[" * 100_000),
        ("input_format", '"GRB"'),
        ("input_format", "[]"),
        ("input_dtype", '"object"'),
        ("score_thresh", "NaN"),
        ("score_thresh", "true"),
        ("nms_thresh", "-1"),
        ("max_detections", "1e99"),
        ("min_size", "9" * 5000),
        ("max_size", "-1"),
        ("weights", "{}"),
        ("weights", " " * 2_000_000 + '"int8"'),
    ],
)
def test_metadata_of_the_wrong_kind_is_refused(key: str, value: str) -> None:
    with pytest.raises(ExportError, match=f"a.onnx: its metadata {key} is .*; expected"):
        parse_metadata({**TEXTS, key: value}, "a.onnx")


@pytest.mark.parametrize("key", METADATA)
def test_metadata_must_be_complete(key: str) -> None:
    with pytest.raises(ExportError, match="no metadata of d2_ext" if key == "class_names" else f"{key} is missing"):
        parse_metadata({name: text for name, text in TEXTS.items() if name != key}, "a.onnx")


def test_honest_metadata_come_back() -> None:
    assert parse_metadata({**TEXTS, "another": "["}, "a.onnx") == METADATA
    assert METADATA.keys() == METADATA_KEYS.keys()


# --- ONNX ---


@pytest.mark.parametrize("strange", STRANGE)
def test_strange_onnx_files_are_refused_before_the_runtime_opens_them(strange: str) -> None:
    change, says = STRANGE[strange]
    model = small_detector()
    change(model)
    Path("a.onnx").write_bytes(model.SerializeToString())
    for read in (load_runtime, read_metadata):
        with pytest.raises(ExportError, match=says):
            read("a.onnx")


def test_names_that_are_no_text_are_refused() -> None:
    Path("a.onnx").write_bytes(small_detector().SerializeToString().replace(b"boxes", b"b\xffxes"))
    for read in (load_runtime, read_metadata):
        with pytest.raises(ExportError, match="expected images, and boxes, scores, classes, image"):
            read("a.onnx")


def test_an_honest_small_file_is_taken() -> None:
    onnx.save(small_detector(), "a.onnx")
    found = load_runtime("a.onnx", threads=1)(np.zeros((1, 3, 8, 8), np.uint8))
    assert [column.shape for column in found] == [(1, 4), (1,), (1,), (1,)]
    assert read_metadata("a.onnx") == METADATA


def test_what_a_runtime_fails_on_is_an_error_of_ours() -> None:
    onnx.save(small_detector(), "a.onnx")
    with pytest.raises(ExportError, match=r"a\.onnx failed on images \(1, 3, 8, 8\) of float64"):
        load_runtime("a.onnx", threads=1)(np.zeros((1, 3, 8, 8)))


def test_what_is_no_detection_is_an_error_of_ours() -> None:
    model = small_detector()
    model.graph.node[1].input[0] = "one_boxes"
    del model.graph.output[1].type.tensor_type.shape.dim[:]
    model.graph.output[1].type.tensor_type.ClearField("shape")
    onnx.save(model, "a.onnx")
    with pytest.raises(ExportError, match=r"scores \(1, 4\).*; expected \(D, 4\) boxes"):
        load_runtime("a.onnx", threads=1)(np.zeros((1, 3, 8, 8), np.uint8))


# --- OpenVINO ---


@pytest.fixture(scope="module")
def honest_xml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    openvino = pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("openvino")
    onnx.save(small_detector(), folder / "a.onnx")
    model = openvino.convert_model(str(folder / "a.onnx"))
    for key, text in TEXTS.items():
        model.set_rt_info(text, [METADATA_NODE, key])
    openvino.save_model(model, str(folder / "a.xml"))
    return folder / "a.xml"


XML: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "entities": (lambda x: b'<!DOCTYPE a [<!ENTITY b "c">]>' + x, "defines entities"),
    "cut": (lambda x: x[:100], "no well-formed xml"),
    "unknown encoding": (lambda x: b'<?xml version="1.0" encoding="klingon"?><net/>', "no well-formed xml"),
    "layer of an extension": (lambda x: x.replace(b'version="opset1"', b'version="extension"'), "not OpenVINO's own"),
    "weights outside": (lambda x: x.replace(b'offset="0"', b'offset="99999999"'), "names weights up to byte"),
    "other output": (lambda x: x.replace(b'names="scores"', b'names="score"'), "expected images, and boxes"),
    "metadata": (lambda x: x.replace(b"uint8&quot;", b"uint9&quot;"), "input_dtype"),
}


@pytest.mark.parametrize("strange", XML)
def test_strange_openvino_files_are_refused(honest_xml: Path, strange: str) -> None:
    change, says = XML[strange]
    content = honest_xml.read_bytes()
    assert change(content) != content, "the case changes nothing"
    Path("a.xml").write_bytes(change(content))
    Path("a.bin").write_bytes(honest_xml.with_suffix(".bin").read_bytes())
    with pytest.raises(ExportError, match=says):
        read_metadata("a.xml")
    if strange != "metadata":
        with pytest.raises(ExportError, match=says):
            load_runtime("a.xml", threads=1)


def test_an_honest_openvino_file_is_taken(honest_xml: Path) -> None:
    assert read_metadata(honest_xml) == METADATA
    assert load_runtime(honest_xml, threads=1)(np.zeros((1, 3, 8, 8), np.uint8)).boxes.shape == (1, 4)
