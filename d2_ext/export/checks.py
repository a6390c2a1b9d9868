"""What an exported file must be before a runtime opens it: the runtimes were not written for files from strangers.

Files of this project hold their weights themselves, use the operators of their standard only, and have one input and
four outputs of known names. Whatever is else is refused. Not seen here: how much memory a graph will ask for whose
sizes are computed while it runs.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from d2_ext.errors import ExportError
from d2_ext.export.metadata import INPUT_NAME, METADATA_FILE, OUTPUT_NAMES

MAX_FILE_BYTES = 2**31  # what protobuf can hold
MAX_GRAPH_BYTES = 50_000_000  # of OpenVINO's xml, without weights
MAX_TEXT_BYTES = 10_000_000  # of the metadata in a .pt2
MAX_VALUES = 2**31  # of a tensor whose size stands in the file
ONNX_DOMAINS = ("", "ai.onnx")
# Operator -> the input that says how large its output becomes.
_SIZED_BY = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Reshape": 1, "Pad": 1, "Resize": 3}
_DOCTYPE = b"<!DOCTYPE"


def check_onnx(model: Any, source: str) -> None:
    """Check a parsed ONNX file; what its nodes compute is not looked at.

    Args:
        model: ``ModelProto``, its external data not loaded.
        source: the file, as messages name it.

    Raises:
        ExportError: other inputs or outputs, operators that are not ONNX's own, weights in other files, or a tensor
            that is larger than its data.
    """
    graph = model.graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in stored]
    check_names(inputs, [value.name for value in graph.output], source)
    if len(model.functions):
        raise ExportError(f"{source}: it brings functions of its own ({model.functions[0].name!r}). {_ADVICE}")
    sizes: dict[str, int] = {}  # what constants ask for, by name
    for tensor in graph.initializer:
        _check_tensor(tensor, source, sizes)
    for node in _nodes(graph):
        if node.domain not in ONNX_DOMAINS:
            raise ExportError(f"{source}: the operator {node.domain}.{node.op_type} is not ONNX's own. {_ADVICE}")
        for attribute in node.attribute:
            tensors = [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            for tensor in tensors:
                _check_tensor(tensor, source, sizes, node.output[0] if node.output else "")
            if attribute.name == "value_ints" and node.output:
                sizes[node.output[0]] = _product(attribute.ints)
        place = _SIZED_BY.get(node.op_type, len(node.input))
        if place < len(node.input) and sizes.get(node.input[place], 0) > MAX_VALUES:
            raise ExportError(
                f"{source}: the operator {node.op_type} asks for {sizes[node.input[place]]} values; at most "
                f"{MAX_VALUES} are expected. {_ADVICE}"
            )


def check_names(inputs: Sequence[str | bytes], outputs: Sequence[str | bytes], source: str) -> None:
    """Compare the names of a graph's inputs and outputs with those of exported detectors.

    Args:
        inputs, outputs: as their reader gives them: protobuf gives bytes where a name is no UTF-8.
        source: the file, as messages name it.

    Raises:
        ExportError: they are others.
    """
    if list(inputs) != [INPUT_NAME] or list(outputs) != list(OUTPUT_NAMES):
        takes, gives = (", ".join(map(str, names)) or "nothing" for names in (inputs, outputs))
        raise ExportError(
            f"{source}: it takes {takes} and gives {gives}; "
            f"expected {INPUT_NAME}, and {', '.join(OUTPUT_NAMES)}. {_ADVICE}"
        )


def check_openvino(path: Path) -> None:
    """Check an OpenVINO ``.xml`` and its ``.bin``.

    Raises:
        ExportError: the xml is not well-formed, defines entities or is too large, has layers that are not OpenVINO's
            own, or names weights that lie outside its ``.bin``.
    """
    weights = path.with_suffix(".bin")
    available = weights.stat().st_size if weights.is_file() else 0
    size = path.stat().st_size
    if size > MAX_GRAPH_BYTES:
        raise ExportError(f"{path} has {size} bytes; at most {MAX_GRAPH_BYTES} are expected. {_ADVICE}")
    content = path.read_bytes()
    if _DOCTYPE in content.upper():
        raise ExportError(f"{path}: it defines entities ({_DOCTYPE.decode()}). {_ADVICE}")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two of unknown encodings
        raise ExportError(f"{path} cannot be read: it is no well-formed xml ({error}). Export it anew.") from error
    for layer in root.iter("layer"):
        if not layer.get("version", "").startswith("opset"):
            raise ExportError(
                f"{path}: the layer {layer.get('type')} of {layer.get('version')} is not OpenVINO's own. {_ADVICE}"
            )
        for data in layer.iter("data") if layer.get("type") == "Const" else ():
            numbers = [data.get("offset", ""), data.get("size", "")]
            end = sum(map(int, numbers)) if all(n.isdecimal() and len(n) < 20 for n in numbers) else math.inf
            if end > available:
                raise ExportError(
                    f"{path}: it names weights up to byte {end}, but {weights.name} has {available}. Copy both files "
                    "together."
                )


def archive_texts(path: Path) -> dict[str, str]:
    """The metadata in a ``.pt2``, read from the archive without torch's loader, which can run code.

    Raises:
        ExportError: it is no archive, or its metadata cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [part for part in archive.infolist() if part.filename.endswith(f"/extra/{METADATA_FILE}")]
            if len(parts) != 1 or parts[0].file_size > MAX_TEXT_BYTES:
                return {}
            texts = json.loads(archive.read(parts[0]))
    except Exception as error:  # a damaged archive raises whatever zipfile and json happen to meet
        reason = str(error) or type(error).__name__
        raise ExportError(f"{path} cannot be read: {reason}. Export it anew, or get the file again.") from error
    return {key: text for key, text in texts.items() if isinstance(text, str)} if isinstance(texts, dict) else {}


_ADVICE = "No file of tools/export.py is like that. Get it from a source you trust."


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of branches and loops among them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(inner)


def _check_tensor(tensor: Any, source: str, sizes: dict[str, int], name: str = "") -> None:
    """Check one tensor, and note in ``sizes`` what shape it stands for if it is a short list of whole numbers."""
    if tensor.external_data or tensor.data_location:
        raise ExportError(f"{source}: the tensor {tensor.name!r} lies in another file. {_ADVICE}")
    values, raw = _product(tensor.dims), len(tensor.raw_data)
    listed = sum(
        len(getattr(tensor, kind)) for kind in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    )
    # Two numbers of 4 bits share a byte, complex numbers have two parts; everything else has a byte or entry each.
    if min(tensor.dims, default=0) < 0 or values > 2 * (raw + listed + len(tensor.string_data)):
        raise ExportError(f"{source}: the tensor {tensor.name!r} has {values} values, but no data for them. {_ADVICE}")
    if tensor.data_type == tensor.INT64 and values <= 16:
        numbers = [int.from_bytes(tensor.raw_data[i : i + 8], "little", signed=True) for i in range(0, raw, 8)]
        sizes[name or tensor.name] = _product([*numbers, *tensor.int64_data])


def _product(numbers: Any) -> int:
    """Of the absolute values: -1 in a shape is what is left, 0 what was there."""
    return math.prod(abs(int(number)) for number in numbers)
