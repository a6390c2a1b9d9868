"""8-bit convolutions for ONNX files: static quantization by onnxruntime, calibrated on images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.export.metadata import INPUT_NAME
from d2_ext.export.runtimes import need

from numpy.typing import NDArray


def quantize(source: Path, target: Path, images: Sequence[NDArray[Any]]) -> None:
    """Round weights (per channel) and activations of the convolutions to 8 bits.

    Everything else stays in float32: norms, decoding and selection, and the convolutions that give logits, boxes or
    masks, whose few channels cost nothing and whose rounding would cost most.

    Args:
        source: float32 ``.onnx`` file.
        target: written.
        images: (1, 3, H, W) each, in the input type of the file; their ranges are taken for all.

    Raises:
        ConfigError: onnxruntime is not installed, or there are no images.
    """
    quantization = need("onnxruntime.quantization", "--int8")
    if not images:
        raise ConfigError("8-bit export needs images to calibrate on; give some with --calibration.")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        """Hands the images out, one by one."""

        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = iter([{INPUT_NAME: image} for image in images])

        def get_next(self) -> dict[str, Any] | None:
            """The next image; None at the end."""
            return next(self.feeds, None)

    logging.getLogger().addFilter(_is_no_advice)
    try:
        quantization.quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=_last_convolutions(source),
            per_channel=True,
            # Weights of 7 bits: on CPUs without VNNI the 16-bit sums of two products of 8 bits saturate.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
    finally:
        logging.getLogger().removeFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Whether a message is more than onnxruntime's advice to optimize the file first, which the exporter has done."""
    return "pre-process" not in record.getMessage()


def _last_convolutions(path: Path) -> list[str]:
    """Names of the convolutions behind which no other comes, nor a product of rows: those that predict."""
    graph = need("onnx", "--int8").load(str(path)).graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    # From back to front (nodes are in topological order): does one of them read what this node makes?
    leads_on: dict[int, bool] = {}
    last = []
    for node in reversed(graph.node):
        following = [reader for name in node.output for reader in readers.get(name, [])]
        further = any(reader.op_type in ("Conv", "Gemm") or leads_on[id(reader)] for reader in following)
        leads_on[id(node)] = further
        if node.op_type == "Conv" and not further:
            last.append(node.name)
    return last
