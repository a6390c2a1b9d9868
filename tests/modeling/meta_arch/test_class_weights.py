"""``MODEL.CLASS_WEIGHTS``: one option of all dense detectors, which moves the classification loss of objects alone."""

from __future__ import annotations

from typing import Any

import d2_ext  # noqa: F401 (makes detectron2 importable)
from d2_ext.config.checks import check_config
from d2_ext.errors import ConfigError

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor

from helpers.export_models import MODELS, tiny_config
from helpers.point_scenes import image

MODELS_HERE = {
    **{name: [] for name in MODELS if name not in ("retinanet", "fcos_silent", "fcos_original")},
    "retinanet": ["MODEL.META_ARCHITECTURE", "IgnoreAwareRetinaNet"],
    "defcn": ["MODEL.DEFCN.AUX_LOSS.ENABLED", True],
}


def _losses(name: str, weights: list[float], classes: list[int]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = build_model(tiny_config(name, *MODELS_HERE[name], "MODEL.CLASS_WEIGHTS", weights)).train()
    batch = [image([[8.0, 8, 72, 72], [100, 30, 200, 150]], classes, (192, 256))]
    with EventStorage():
        torch.manual_seed(1)  # of the noise of masks
        losses = model(batch)
        sum(losses.values()).backward()
    assert not any("class_weights" in key for key in model.state_dict())
    return {key: value.detach() for key, value in losses.items()}


@pytest.mark.parametrize("name", MODELS_HERE)
def test_the_terms_of_objects_grow_with_the_weight_of_their_class(name: str) -> None:
    plain, ones = _losses(name, [], [0, 2]), _losses(name, [1.0, 1.0, 1.0], [0, 2])
    torch.testing.assert_close(ones, plain)
    two, three = _losses(name, [1.0, 1.0, 2.0], [0, 2]), _losses(name, [1.0, 1.0, 3.0], [0, 2])
    for key, value in plain.items():
        if key.startswith("loss_cls"):
            assert two[key] > value, key
            torch.testing.assert_close(three[key] - two[key], two[key] - value, rtol=1e-3, atol=1e-6)
        else:
            torch.testing.assert_close(two[key], value)
    torch.testing.assert_close(_losses(name, [1.0, 5.0, 1.0], [0, 2]), plain)  # no object of that class


@pytest.mark.parametrize("name", MODELS_HERE)
@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, 2.0, 0.0], [1.0, 2.0, -1.0]])
def test_other_than_a_positive_number_a_class_is_refused(name: str, weights: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"MODEL.CLASS_WEIGHTS is .*one positive number for each of the 3"):
        build_model(tiny_config(name, *MODELS_HERE[name], "MODEL.CLASS_WEIGHTS", weights))


def test_detectors_that_would_not_read_it_and_values_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"CLASS_WEIGHTS is set, but RetinaNet of Detectron2.*IgnoreAwareRetinaNet"):
        check_config(tiny_config("retinanet", "MODEL.CLASS_WEIGHTS", [1.0, 1.0, 2.0]))
    with pytest.raises(ConfigError, match=r"MODEL.CLASS_WEIGHTS is \[0.0\]; expected a list, each a number above 0"):
        check_config(tiny_config("fcos", "MODEL.CLASS_WEIGHTS", [0.0]))
