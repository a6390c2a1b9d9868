"""Transforms, augmentations and annotations, on either implementation of Detectron2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image

IMAGE = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)


def draw(augmentation: T.Augmentation, seed: int = 3, **more: Any) -> tuple[T.AugInput, Any]:
    """The augmented noise image of 40 x 30 px, and the transform drawn."""
    np.random.seed(seed)
    inputs = T.AugInput(IMAGE, **more)
    return inputs, augmentation(inputs)


# -- framework ---------------------------------------------------------------------------------------------------------


def test_the_names_of_arguments_select_the_input() -> None:
    class NeedsBoxes(T.Augmentation):
        def get_transform(self, boxes: np.ndarray, image: np.ndarray) -> T.Transform:
            self.seen = boxes.shape, image.shape
            return T.NoOpTransform()

    class NeedsOne(T.Augmentation):
        def get_transform(self, whatever: np.ndarray) -> T.Transform:
            self.seen = whatever.shape
            return T.NoOpTransform()

    class NeedsDepth(T.Augmentation):
        def get_transform(self, image: np.ndarray, depth: np.ndarray) -> T.Transform:
            return T.NoOpTransform()

    both, one = NeedsBoxes(), NeedsOne()
    T.AugmentationList([both, one])(T.AugInput(IMAGE, boxes=np.zeros((2, 4))))
    assert both.seen == ((2, 4), (30, 40, 3))
    assert one.seen == (30, 40, 3)  # a single argument is the image
    with pytest.raises(AttributeError, match="depth"):
        NeedsDepth()(T.AugInput(IMAGE))


def test_each_augmentation_sees_what_the_one_before_left() -> None:
    inputs = T.AugInput(IMAGE, boxes=np.array([[4.0, 6.0, 20.0, 24.0]]), sem_seg=IMAGE[:, :, 0])
    transforms = inputs.apply_augmentations([T.Resize((60, 80)), T.RandomFlip(prob=1.0), T.CropTransform(0, 0, 50, 40)])
    assert (inputs.image.shape, inputs.sem_seg.shape) == ((40, 50, 3), (40, 50))
    # Scaled by 2 to 8, 12, 40, 48; mirrored in 80 columns.
    np.testing.assert_allclose(inputs.boxes, [[40.0, 12.0, 72.0, 48.0]])
    assert isinstance(transforms, T.TransformList)
    np.testing.assert_array_equal(transforms.apply_image(IMAGE), inputs.image)


def test_an_array_gives_an_array_back() -> None:
    flipped, transforms = T.apply_augmentations([T.RandomFlip(prob=1.0)], IMAGE)
    np.testing.assert_array_equal(flipped, IMAGE[:, ::-1])
    assert [type(t).__name__ for t in transforms.transforms] == ["HFlipTransform"]


def test_representations_show_what_differs_from_the_default() -> None:
    flip = T.RandomFlip(prob=0.2, horizontal=False, vertical=True)
    shown = "ResizeShortestEdge(short_edge_length=(400, 400), max_size=600)"
    both = T.AugmentationList([T.RandomFlip(), T.ResizeShortestEdge(400, 600)])
    assert repr(flip) == "RandomFlip(prob=0.2, horizontal=False, vertical=True)"
    assert repr(both) == f"AugmentationList[RandomFlip(), {shown}]"


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_random_apply_of_a_transform(prob: float) -> None:
    applied, _ = T.apply_augmentations([T.RandomApply(T.HFlipTransform(40), prob=prob)], IMAGE)
    np.testing.assert_array_equal(applied, IMAGE[:, ::-1] if prob else IMAGE)
    with pytest.raises(AssertionError):
        T.RandomApply(T.NoOpTransform(), prob=1.1)


# -- sizes and pixels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # 640 * 800/480 = 1066.67, 640 * 800/427 = 1199.06; the last two are limited by the long side:
        # 1333/1920 * 1080 = 749.8, 1333/1000 * 333 = 443.9.
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((1080, 1920), (750, 1333)),
        ((333, 1000), (444, 1333)),
    ],
)
def test_size_after_scaling_the_shortest_edge(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert T.ResizeShortestEdge.get_output_shape(*size, 800, 1333) == expected


def test_uint8_is_scaled_with_antialiasing_and_float_without() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    transform = T.ResizeTransform(80, 80, 20, 20)
    averaged, sampled = transform.apply_image(noise), transform.apply_image(noise.astype("float32"))
    assert averaged.std() < 0.5 * sampled.std()
    np.testing.assert_array_equal(averaged, np.asarray(Image.fromarray(noise).resize((20, 20), Image.BILINEAR)))


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1), (8, 6, 3)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_scaling_keeps_dimensions_and_dtype(shape: tuple[int, ...], dtype: str) -> None:
    scaled = T.ResizeTransform(8, 6, 4, 3).apply_image(np.full(shape, 7, dtype=dtype)[::-1])
    assert (scaled.shape, scaled.dtype) == ((4, 3, *shape[2:]), dtype)
    assert (scaled == 7).all()


def test_scaling_maps_coordinates_and_back_and_does_not_mix_labels() -> None:
    transform = T.ResizeTransform(10, 20, 25, 30)
    coords = transform.apply_coords(np.array([[2.0, 4.0], [20.0, 10.0]]))
    np.testing.assert_allclose(coords, [[3.0, 10.0], [30.0, 25.0]])
    np.testing.assert_allclose(transform.inverse().apply_coords(coords), [[2.0, 4.0], [20.0, 10.0]])
    with pytest.raises(AssertionError):
        transform.apply_image(np.zeros((20, 10), dtype="uint8"))
    labels = np.array([[0, 9], [9, 0]], dtype=np.uint8)
    larger = T.ResizeTransform(2, 2, 4, 4).apply_segmentation(labels)
    np.testing.assert_array_equal(larger, labels.repeat(2, 0).repeat(2, 1))


def test_a_quarter_turn_by_hand() -> None:
    pytest.importorskip("cv2")
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    turn = T.RotationTransform(2, 3, 90)
    np.testing.assert_array_equal(turn.apply_image(picture), np.rot90(picture))
    # Counter-clockwise: the upper right corner (3, 0) becomes the upper left.
    np.testing.assert_allclose(turn.apply_coords(np.array([[3.0, 0.0], [0.0, 0.0]])), [[0, 0], [0, 3]], atol=1e-9)


def test_an_extent_is_cut_scaled_and_filled() -> None:
    picture = np.arange(24, dtype=np.uint8).reshape(4, 6)
    inner = T.ExtentTransform((1, 1, 4, 3), (2, 3))
    np.testing.assert_array_equal(inner.apply_image(picture), picture[1:3, 1:4])
    np.testing.assert_allclose(inner.apply_coords(np.array([[1.0, 1.0], [4.0, 3.0]])), [[0, 0], [3, 2]])
    outside = T.ExtentTransform((-2, 0, 4, 4), (4, 6)).apply_image(picture)
    assert (outside[:, :2] == 0).all()
    np.testing.assert_array_equal(outside[:, 2:], picture[:, :4])


def test_color_operations_leave_geometry_alone() -> None:
    transform = T.ColorTransform(lambda img: 255 - img)
    np.testing.assert_array_equal(transform.apply_image(IMAGE), 255 - IMAGE)
    coords = np.array([[1.0, 2.0]])
    assert transform.apply_coords(coords) is coords
    pil = T.PILColorTransform(lambda img: img.point(lambda v: v // 2))
    np.testing.assert_array_equal(pil.apply_image(IMAGE), IMAGE // 2)
    with pytest.raises(ValueError):  # noqa: PT011
        T.ColorTransform("gray")


# -- random draws ------------------------------------------------------------------------------------------------------


def test_a_crop_draws_size_then_row_then_column() -> None:
    _, crop = draw(T.RandomCrop("relative_range", (0.4, 0.5)))
    np.random.seed(3)
    share = np.array([0.4, 0.5], dtype="float32")
    share = share + np.random.rand(2) * (1 - share)
    h, w = int(30 * share[0] + 0.5), int(40 * share[1] + 0.5)
    top = np.random.randint(30 - h + 1)
    left = np.random.randint(40 - w + 1)
    assert (crop.x0, crop.y0, crop.w, crop.h) == (left, top, w, h)


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [("relative", (0.5, 0.25), (15, 10)), ("absolute", (10, 99), (10, 40)), ("absolute_range", (12, 12), (12, 12))],
)
def test_sizes_of_crops(kind: str, size: tuple, expected: tuple[int, int]) -> None:
    assert draw(T.RandomCrop(kind, size))[0].image.shape[:2] == expected


def test_the_shortest_edge_is_drawn_from_a_range_or_a_list() -> None:
    np.random.seed(5)
    from_range = np.random.randint(20, 51)
    assert draw(T.ResizeShortestEdge((20, 50)), 5)[0].image.shape[0] == from_range
    np.random.seed(5)
    chosen = np.random.choice((20, 35, 50))
    assert draw(T.ResizeShortestEdge((20, 35, 50), sample_style="choice"), 5)[0].image.shape[0] == chosen
    assert draw(T.ResizeShortestEdge(0, sample_style="choice"))[0].image is IMAGE


def test_flips() -> None:
    np.random.seed(0)
    drawn = [np.random.uniform(0, 1.0) < 0.3 for _ in range(20)]
    np.random.seed(0)
    flip = T.RandomFlip(0.3)
    assert [isinstance(flip.get_transform(IMAGE), T.HFlipTransform) for _ in range(20)] == drawn
    vertical, _ = draw(T.RandomFlip(1.0, horizontal=False, vertical=True))
    np.testing.assert_array_equal(vertical.image, IMAGE[::-1])
    for both in (True, False):
        with pytest.raises(ValueError):  # noqa: PT011
            T.RandomFlip(horizontal=both, vertical=both)


def test_large_scale_jittering_gives_a_fixed_size() -> None:
    for seed in range(6):
        inputs, _ = draw(T.AugmentationList([T.ResizeScale(0.3, 2.0, 48, 48), T.FixedSizeCrop((48, 48))]), seed)
        assert inputs.image.shape == (48, 48, 3)
    padded, _ = draw(T.FixedSizeCrop((32, 48), pad_value=9), sem_seg=IMAGE[:, :, 0])
    assert (padded.image[30:] == 9).all()
    assert (padded.sem_seg[:, 40:] == 255).all()
    np.testing.assert_array_equal(padded.image[:30, :40], IMAGE)


def test_brightness_contrast_and_saturation_blend_as_they_say() -> None:
    np.random.seed(3)
    weight = np.random.uniform(0.5, 1.5)
    pixels = IMAGE.astype("float64")
    gray = (pixels @ [0.299, 0.587, 0.114])[:, :, None]
    others = {T.RandomBrightness: 0.0, T.RandomContrast: pixels.mean(), T.RandomSaturation: gray}
    for kind, other in others.items():
        expected = np.clip(weight * pixels + (1 - weight) * other, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(draw(kind(0.5, 1.5))[0].image, expected)


# -- annotations -------------------------------------------------------------------------------------------------------


def test_boxes_are_converted_moved_and_clipped() -> None:
    crop_and_flip = [T.CropTransform(10, 10, 50, 40), T.HFlipTransform(50)]
    for box, expected in [
        ([12, 12, 20, 20], [28, 2, 48, 22]),  # 12..32 minus 10 is 2..22, mirrored 28..48
        ([0, 0, 15, 15], [45, 0, 50, 5]),
        ([0, 0, 5, 5], [50, 0, 50, 0]),  # outside: nothing is left
    ]:
        anno = {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
        moved = detection_utils.transform_instance_annotations(anno, crop_and_flip, (40, 50))
        assert moved is anno
        assert (moved["bbox_mode"], moved["bbox"].tolist()) == (BoxMode.XYXY_ABS, expected)


def test_empty_boxes_are_filtered_and_no_annotations_give_empty_instances() -> None:
    boxes = [[0, 0, 4, 4], [50, 0, 50, 9], [1, 1, 1 + 1e-6, 5]]
    annos = [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i} for i, box in enumerate(boxes)]
    instances = detection_utils.annotations_to_instances(annos, (40, 50))
    assert instances.gt_classes.dtype == torch.int64
    kept, mask = detection_utils.filter_empty_instances(instances, return_mask=True)
    assert (mask.tolist(), kept.gt_classes.tolist()) == ([True, False, False], [0])
    none = detection_utils.filter_empty_instances(detection_utils.annotations_to_instances([], (40, 50)))
    assert (len(none), none.gt_boxes.tensor.shape, none.gt_classes.shape) == (0, (0, 4), (0,))


def test_polygons_follow_the_image() -> None:
    box = {"bbox": [2, 2, 4, 2], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    anno = {**box, "segmentation": [[2, 2, 6, 2, 6, 4, 2, 4]]}
    moved = detection_utils.transform_instance_annotations(anno, [T.HFlipTransform(10)], (10, 10))
    assert moved["segmentation"][0].tolist() == [8, 2, 4, 2, 4, 4, 8, 4]
    polygons = detection_utils.annotations_to_instances([moved], (10, 10)).gt_masks
    bits = detection_utils.annotations_to_instances([moved], (10, 10), mask_format="bitmask").gt_masks
    assert (type(polygons), type(bits)) == (PolygonMasks, BitMasks)
    assert (polygons.area().tolist(), int(bits.tensor.sum())) == ([8.0], 8)
    assert bits.get_bounding_boxes().tensor.tolist() == polygons.get_bounding_boxes().tensor.tolist()


def test_a_crop_contains_the_center_of_the_instance() -> None:
    np.random.seed(0)
    instance = {"bbox": [40, 10, 30, 50], "bbox_mode": BoxMode.XYWH_ABS}  # center x 55, y 35
    for _ in range(30):
        crop = detection_utils.gen_crop_transform_with_instance((20, 30), (70, 90), instance)
        assert (crop.h, crop.w) == (20, 30)
        assert crop.x0 <= 55 <= crop.x0 + 30 <= 90
        assert crop.y0 <= 35 <= crop.y0 + 20 <= 70


def test_augmentations_of_the_default_config() -> None:
    cfg = get_cfg()
    cfg.INPUT.RANDOM_FLIP = "vertical"
    size, flip = detection_utils.build_augmentation(cfg, True)
    assert (size.short_edge_length, size.max_size, size.is_range) == ((800,), 1333, False)
    assert (flip.horizontal, flip.vertical) == (False, True)
    assert len(detection_utils.build_augmentation(cfg, False)) == 1


# -- files -------------------------------------------------------------------------------------------------------------


def test_images_are_read_in_their_format_and_turned_upright(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10
    path = str(tmp_path / "a.png")
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(detection_utils.read_image(path), pixels)
    bgr = detection_utils.read_image(path, "BGR")
    np.testing.assert_array_equal(bgr, pixels[:, :, ::-1])
    np.testing.assert_array_equal(detection_utils.convert_image_to_rgb(bgr, "BGR"), pixels)
    assert detection_utils.read_image(path, "L").shape == (2, 4, 1)
    yuv = detection_utils.read_image(path, "YUV-BT.601")
    np.testing.assert_allclose(yuv[:, :, 0], pixels @ [0.299, 0.587, 0.114] / 255)
    np.testing.assert_allclose(detection_utils.convert_image_to_rgb(yuv, "YUV-BT.601"), pixels, atol=0.1)
    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter clockwise
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(detection_utils.read_image(path, "RGB"), np.rot90(pixels, -1))


def test_the_size_of_the_record_is_checked_or_filled_in() -> None:
    record: dict[str, Any] = {"file_name": "a.png"}
    detection_utils.check_image_size(record, IMAGE)
    assert (record["height"], record["width"]) == (30, 40)
    with pytest.raises(detection_utils.SizeMismatchError, match=r"a\.png"):
        detection_utils.check_image_size({"file_name": "a.png", "height": 40, "width": 30}, IMAGE)
