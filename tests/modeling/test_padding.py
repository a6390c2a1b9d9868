"""Images in groups of equal padded size."""

from __future__ import annotations

from typing import Any

from d2_ext.modeling.padding import groups_of_equal_size, run_in_groups

import pytest
import torch

from helpers.point_scenes import tiny_model

SIZES = [(96, 128), (64, 64), (90, 100), (96, 129)]  # padded to multiples of 32: the first and the third are equal
IMAGES = [{"image": torch.zeros(3, *size)} for size in SIZES]


def test_images_of_equal_padded_size_stand_together() -> None:
    assert groups_of_equal_size(tiny_model("FCOS").backbone, IMAGES) == [[0, 2], [1], [3]]


def test_results_come_in_the_order_of_the_images() -> None:
    def sizes(group: list[dict[str, Any]]) -> list[tuple[int, ...]]:
        return [tuple(item["image"].shape[-2:]) for item in group]

    assert run_in_groups(tiny_model("FCOS").backbone, IMAGES, sizes) == SIZES


def test_a_lost_result_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        run_in_groups(tiny_model("FCOS").backbone, IMAGES, lambda group: group[:-1])
