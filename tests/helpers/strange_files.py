"""Small ONNX files of the names and types of exported detectors, honest and strange."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from d2_ext.export.metadata import INPUT_NAME, OUTPUT_NAMES

import pytest

onnx = pytest.importorskip("onnx")

METADATA: dict[str, Any] = {
    "d2_ext": 1,
    "meta_architecture": "FCOS",
    "class_names": ["car"],
    "input_format": "BGR",
    "input_dtype": "uint8",
    "score_thresh": 0.05,
    "nms_thresh": None,
    "max_detections": 100,
    "min_size": 0,
    "max_size": 0,
    "weights": "float32",
}
TEXTS = {key: json.dumps(value) for key, value in METADATA.items()}

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def small_detector(nodes: list[Any] = (), stored: list[Any] = (), **names: list[str]) -> Any:
    """A graph of the names and types of a detector: one detection, whatever it sees."""
    helper = onnx.helper
    kinds = dict(zip(OUTPUT_NAMES, [(FLOAT, ["d", 4]), (FLOAT, ["d"]), (INT64, ["d"]), (INT64, ["d"])]))
    one = [
        helper.make_tensor(f"one_{name}", kind, [1, 4] if name == "boxes" else [1], [0] * (4 if name == "boxes" else 1))
        for name, (kind, _) in kinds.items()
    ]
    given = [helper.make_node("Identity", [f"one_{name}"], [name]) for name in OUTPUT_NAMES]
    graph = helper.make_graph(
        [*nodes, *given],
        "detector",
        [helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.UINT8, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info(name, *kinds[name]) for name in OUTPUT_NAMES],
        [*one, *stored],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    helper.set_model_props(model, TEXTS)
    return model


def external(model: Any) -> None:
    tensor = model.graph.initializer.add(name="w", data_type=FLOAT, dims=[4])
    tensor.data_location = tensor.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/hostname")


def constant(name: str, values: list[int]) -> Any:
    return onnx.helper.make_node("Constant", [], [name], value_ints=values)


def sized(operator: str, *inputs: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        nodes = [
            constant("shape", [10**6, 10**6]),
            onnx.helper.make_node(operator, [*inputs, "shape"], ["huge"]),
        ]
        for node in reversed(nodes):
            model.graph.node.insert(0, node)

    return change


def in_a_branch(model: Any) -> None:
    inner = onnx.helper.make_node("Gelu", ["one_boxes"], ["b"], domain="com.microsoft")
    graph = onnx.helper.make_graph([inner], "branch", [], [onnx.helper.make_tensor_value_info("b", FLOAT, None)])
    branch = onnx.helper.make_node("If", ["one_image"], ["c"], then_branch=graph, else_branch=graph)
    model.graph.node.insert(0, branch)


STRANGE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "external data": (external, "lies in another file"),
    "no data": (lambda m: m.graph.initializer.add(name="w", data_type=FLOAT, dims=[10**6, 10**6]), "no data for them"),
    "negative size": (lambda m: m.graph.initializer.add(name="w", data_type=FLOAT, dims=[-1]), "no data for them"),
    "huge expansion": (sized("Expand", "one_boxes"), "asks for 1000000000000 values"),
    "huge constant": (sized("ConstantOfShape"), "asks for 1000000000000 values"),
    "operator of a runtime": (
        lambda m: m.graph.node.insert(0, onnx.helper.make_node("Gelu", ["one_boxes"], ["b"], domain="com.microsoft")),
        r"com\.microsoft\.Gelu is not ONNX's own",
    ),
    "operator of a runtime in a branch": (in_a_branch, r"com\.microsoft\.Gelu is not ONNX's own"),
    "own function": (lambda m: m.functions.add(name="f", domain="x"), "functions of its own"),
    "other output": (lambda m: m.graph.output.pop(), "gives boxes, scores, classes; expected"),
    "other input": (lambda m: m.graph.input.pop(), "takes nothing"),
}
