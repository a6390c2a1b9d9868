"""The batch predictor against Detectron2's predictor of single images, on either implementation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from d2_ext.errors import CheckpointError, ConfigError, DatasetError
from d2_ext.inference import BatchPredictor, read_image

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.structures import Instances
from PIL import Image

from helpers.inference_detectors import FURTHER, RECIPES, noise, small_cfg, write_weights

SIZES = ((64, 96), (60, 90), (96, 64), (64, 96), (100, 33))


def _assert_same(found: Instances, expected: Instances, tolerance: float = 1e-4) -> None:
    assert found.image_size == expected.image_size
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=tolerance)
    # Random detectors score so evenly that rounding swaps neighbours, and now and then who survives NMS: rows are
    # compared whatever their order, and two in a hundred may differ.
    rows = [
        torch.cat([x.pred_boxes.tensor, 1e3 * x.scores[:, None], 1e3 * x.pred_classes[:, None]], dim=1)
        for x in (found, expected)
    ]
    nearest = (rows[0][:, None] - rows[1][None]).abs().amax(dim=2).amin(dim=0)
    assert (nearest < 1000 * tolerance).float().mean() >= 0.98


@pytest.mark.parametrize("recipe", [*RECIPES, *FURTHER])
def test_each_image_of_a_mixed_batch_gets_the_result_of_the_default_predictor(recipe: str, tmp_path: Path) -> None:
    cfg = write_weights(small_cfg(recipe), tmp_path)
    images = [noise(*size, seed) for seed, size in enumerate(SIZES)]
    default, predictor = DefaultPredictor(cfg), BatchPredictor(cfg, batch_size=4, fold=False)
    for model in (default.model, predictor.model):
        if model.test_nms_thresh is not None:
            model.test_nms_thresh = 1.0  # of evenly scored boxes rounding would decide who suppresses whom
    expected = [default(image)["instances"] for image in images]
    assert sum(map(len, expected)) > 20
    for found, wanted in zip(predictor(images), expected, strict=True):
        _assert_same(found, wanted)


def test_folding_and_resizing_keep_the_numbers(tmp_path: Path) -> None:
    cfg = write_weights(
        small_cfg("fcos_R18_synthetic", "INPUT.MIN_SIZE_TEST", 80, "INPUT.MAX_SIZE_TEST", 100), tmp_path
    )
    images = [noise(64, 96), noise(50, 120)]
    default = DefaultPredictor(cfg)
    for found, image in zip(BatchPredictor(cfg, batch_size=2)(images), images):
        _assert_same(found, default(image)["instances"], tolerance=1e-3)


def test_bfloat16_finds_nearly_the_same_scores(tmp_path: Path) -> None:
    cfg = write_weights(small_cfg("fcos_R18_synthetic"), tmp_path)
    image = noise(64, 96)
    exact = BatchPredictor(cfg)([image])[0]
    rough = BatchPredictor(cfg, bfloat16=True)([image])[0]
    assert not torch.equal(exact.scores[:5], rough.scores[:5])
    torch.testing.assert_close(rough.scores[:5].float(), exact.scores[:5], rtol=0, atol=0.03)


def test_an_iterator_is_read_one_batch_at_a_time(tmp_path: Path) -> None:
    taken = []

    def images() -> Iterator[np.ndarray]:
        for number in range(5):
            taken.append(number)
            yield noise(32, 32, number)

    stream = BatchPredictor(write_weights(small_cfg(), tmp_path), batch_size=2).stream(images())
    next(stream)
    assert taken == [0, 1]
    assert len(list(stream)) == 4


def test_files_are_turned_as_their_exif_entry_says(tmp_path: Path) -> None:
    stored = noise(40, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(stored[:, :, ::-1]).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(stored, k=-1))
    predictor = BatchPredictor(write_weights(small_cfg(), tmp_path))
    assert predictor([tmp_path / "turned.png"])[0].image_size == (64, 40)


def test_what_is_no_image_is_said(tmp_path: Path) -> None:
    predictor = BatchPredictor(write_weights(small_cfg(), tmp_path))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    with pytest.raises(DatasetError, match="broken.jpg' cannot be read"):
        predictor([tmp_path / "broken.jpg"])
    with pytest.raises(DatasetError, match="No image"):
        predictor(["nowhere.jpg"])
    with pytest.raises(DatasetError, match=r"shape \(8, 8\)"):
        predictor([np.zeros((8, 8), np.uint8)])
    with pytest.raises(DatasetError, match=r"write \[image\]"):
        predictor(noise(8, 8))
    with pytest.raises(ConfigError, match="batch_size is 0"):
        BatchPredictor(small_cfg(), batch_size=0)


def test_no_images_give_no_results(tmp_path: Path) -> None:
    assert BatchPredictor(write_weights(small_cfg(), tmp_path))([]) == []


def test_the_score_threshold_drops_and_also_lowers_the_models_own(tmp_path: Path) -> None:
    cfg = write_weights(small_cfg("defcn_R18_synthetic", "TEST.DETECTIONS_PER_IMAGE", 9999), tmp_path)
    images = [noise(64, 96)]
    (everything,) = BatchPredictor(cfg)(images)
    middle = everything.scores.median().item()
    (high,) = BatchPredictor(cfg, score_thresh=middle)(images)
    assert len(high) == int((everything.scores >= middle).sum()) < len(everything)
    strict = small_cfg(
        "defcn_R18_synthetic", "MODEL.DEFCN.SCORE_THRESH_TEST", middle, "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS
    )
    (low,) = BatchPredictor(strict, score_thresh=0.0)(images)
    assert (low.scores < middle).any()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    weights = write_weights(small_cfg("fcos_R18_synthetic"), tmp_path).MODEL.WEIGHTS
    with pytest.raises(CheckpointError, match="does not fit the model"):
        BatchPredictor(small_cfg("defcn_R18_synthetic", "MODEL.WEIGHTS", weights))
    with pytest.raises(CheckpointError, match="have another shape"):
        BatchPredictor(small_cfg("fcos_R18_synthetic", "MODEL.WEIGHTS", weights, "MODEL.FCOS.NUM_CLASSES", 7))


def test_class_names_come_from_the_checkpoint_the_run_folder_or_the_data_set(tmp_path: Path) -> None:
    registered = BatchPredictor(write_weights(small_cfg(), tmp_path))
    assert registered.class_names == ["car", "van", "person", "bike"]
    assert len(registered.metadata.thing_colors) == 4
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    assert BatchPredictor(write_weights(small_cfg(), tmp_path)).class_names == list("abcd")
    named = write_weights(small_cfg(), tmp_path, class_names=list("wxyz"))
    predictor = BatchPredictor(named)
    assert predictor.class_names == list("wxyz")
    assert predictor.metadata.thing_classes == list("wxyz")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        "a.jpg",
        None,
    ],
    ids=["gray", "alpha", "float", "empty", "tensor", "path", "none"],
)
def test_a_batch_takes_arrays_of_images_alone(image: object, tmp_path: Path) -> None:
    predictor = BatchPredictor(write_weights(small_cfg(), tmp_path))
    for method in (predictor.predict_batch, predictor.activation_masks):
        with pytest.raises(DatasetError, match=r"An image .*Expected .*uint8"):
            method([noise(16, 16), image])


@pytest.mark.parametrize("options", [{"score_thresh": float("nan")}, {"score_thresh": 2}, {"batch_size": 1.5}], ids=str)
def test_options_that_cannot_work_are_refused(options: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is "):
        BatchPredictor(small_cfg(), **options)
