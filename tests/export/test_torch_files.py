"""Programs of ``torch.export``, at other sizes and batches than they were recorded with."""

from __future__ import annotations

import pytest

from helpers.exported_files import LONG_ARCHITECTURES, ExportedFiles, architectures, assert_detects_the_same

# What DeFCN and GFL have of their own is in the graphs of torch that their ONNX files are made of.
CASES = [
    *architectures("fcos", "fcos_sparse", "retinanet_ceasc", *LONG_ARCHITECTURES),
    *(pytest.param(name, marks=pytest.mark.long) for name in ("defcn", "gfl")),
]


@pytest.mark.parametrize("name", CASES)
def test_it_detects_what_the_model_does_at_any_size_and_batch(exported: ExportedFiles, name: str) -> None:
    assert_detects_the_same(exported.path(name, "torch"), name)
