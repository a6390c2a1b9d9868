"""Programs of ``torch.export``, at other sizes and batches than they were recorded with."""

from __future__ import annotations

from d2_ext.export import ExportableDetector, gathered_maps
from d2_ext.export.formats import trace

import pytest
from torch import nn

from helpers.export_models import noise, tiny_model
from helpers.exported_files import LONG_ARCHITECTURES, ExportedFiles, architectures, assert_detects_the_same

# What DeFCN and GFL have of their own is in the graphs of torch that their ONNX files are made of.
CASES = [
    *architectures("fcos", "fcos_sparse", "retinanet_ceasc", *LONG_ARCHITECTURES),
    *(pytest.param(name, marks=pytest.mark.long) for name in ("defcn", "gfl")),
]


@pytest.mark.parametrize("name", CASES)
def test_it_detects_what_the_model_does_at_any_size_and_batch(exported: ExportedFiles, name: str) -> None:
    assert_detects_the_same(exported.path(name, "torch"), name)


def test_an_image_without_an_active_position_or_a_detection_is_no_error() -> None:
    model = tiny_model("fcos_sparse")
    for tower in model.head.towers().values():
        nn.init.constant_(tower.mask_conv.bias, -1e6)
    program = trace(ExportableDetector(model, tower_pass=gathered_maps)).module()
    assert [len(found) for found in program(noise(1, 3, 288, 352))] == [0, 0, 0, 0]
