"""Drawing on pictures, on either implementation of Detectron2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from PIL import Image

pytest.importorskip("matplotlib")

from detectron2.utils.colormap import colormap, random_color
from detectron2.utils.visualizer import ColorMode, Visualizer

GRAY = np.full((100, 140, 3), 128, dtype=np.uint8)
COCO = MetadataCatalog.get("coco_2017_val")
META = Metadata(name="contract_vis", thing_classes=["ship", "car"], thing_colors=[[255, 0, 0], [0, 0, 255]])


def detections(masks: bool = False) -> Instances:
    instances = Instances(GRAY.shape[:2])
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 60.0, 90.0], [70.0, 20.0, 130.0, 60.0]]))
    instances.scores = torch.tensor([0.87, 0.5])
    instances.pred_classes = torch.tensor([0, 1])
    if masks:
        instances.pred_masks = torch.zeros(2, *GRAY.shape[:2], dtype=torch.bool)
        instances.pred_masks[0, 10:85, 10:55] = True
    return instances


def texts(visualizer: Visualizer) -> list[str]:
    return [t.get_text() for t in visualizer.output.ax.texts]


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("size", [(100, 140), (37, 928)])
def test_an_untouched_picture_comes_back_at_its_scale(size: tuple[int, int], scale: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    image = Visualizer(noise, scale=scale).get_output().get_image()
    assert image.dtype == np.uint8
    assert image.shape == (int(size[0] * scale), int(size[1] * scale), 3)
    if scale == 1.0:
        np.testing.assert_array_equal(image, noise)


def test_detections_are_labelled_with_class_and_score() -> None:
    visualizer = Visualizer(GRAY, META)
    output = visualizer.draw_instance_predictions(detections())
    assert output is visualizer.get_output()
    assert texts(visualizer) == ["ship 87%", "car 50%"]
    for metadata, labels in ((None, ["0 87%", "1 50%"]), (COCO, ["person 87%", "bicycle 50%"])):
        other = Visualizer(GRAY, metadata)
        other.draw_instance_predictions(detections())
        assert texts(other) == labels
    changed = (output.get_image() != GRAY).any(axis=2)
    assert changed[30:80, 3:8].all(axis=0).any()  # the left side of the first box
    assert not changed[95:, :].any()


def test_large_instances_are_drawn_first() -> None:
    visualizer = Visualizer(GRAY, META)
    visualizer.overlay_instances(
        boxes=np.array([[0, 0, 9, 9], [0, 0, 50, 50.0], [0, 0, 20, 20]]), labels=["s", "l", "m"]
    )
    assert texts(visualizer) == ["l", "m", "s"]


def test_records_are_drawn_and_crowds_marked() -> None:
    annos: list[dict[str, Any]] = [
        {"bbox": [5, 5, 80, 80], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 1},
        {"bbox": [5, 5, 60, 60], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0},
    ]
    visualizer = Visualizer(GRAY, META)
    visualizer.draw_dataset_dict({"annotations": annos})
    assert texts(visualizer) == ["car|crowd", "ship"]
    empty = Visualizer(GRAY, META)
    np.testing.assert_array_equal(empty.draw_dataset_dict({"annotations": []}).get_image(), GRAY)


def test_colours_by_class_come_from_the_metadata() -> None:
    visualizer = Visualizer(GRAY, META, instance_mode=ColorMode.SEGMENTATION)
    image = visualizer.draw_instance_predictions(detections(masks=True), jittering=False).get_image()
    red, green, blue = image[60, 30].tolist()
    assert red > 200
    assert max(green, blue) < 60


def test_the_grey_mode_keeps_colours_inside_masks_only() -> None:
    red = np.zeros_like(GRAY)
    red[:, :, 0] = 240
    visualizer = Visualizer(red, META, instance_mode=ColorMode.IMAGE_BW)
    image = visualizer.draw_instance_predictions(detections(masks=True)).get_image().astype(int)
    np.testing.assert_array_equal(image[95:, 60:], np.full_like(image[95:, 60:], 80))
    assert image[60, 30, 0] - image[60, 30, 1:].min() > 50
    empty = Visualizer(red, META, instance_mode=ColorMode.IMAGE_BW).draw_instance_predictions(detections()[:0])
    np.testing.assert_array_equal(empty.get_image(), np.full_like(red, 80))


MASK = np.zeros(GRAY.shape[:2], dtype=bool)
MASK[20:60, 30:90] = True
CORNERS = [30.0, 20.0, 90.0, 20.0, 90.0, 60.0, 30.0, 60.0]


@pytest.mark.parametrize(
    "masks",
    [[MASK], BitMasks(torch.from_numpy(MASK)[None]), [[np.array(CORNERS)]], PolygonMasks([[np.array(CORNERS)]])],
    ids=["arrays", "BitMasks", "polygons", "PolygonMasks"],
)
def test_masks_of_each_kind_colour_their_pixels(masks: Any) -> None:
    visualizer = Visualizer(GRAY)
    image = visualizer.overlay_instances(masks=masks, assigned_colors=[(1.0, 0.0, 0.0)], alpha=0.5).get_image()
    red, green, _ = image[40, 60].tolist()
    assert red == pytest.approx(192, abs=2)  # halfway from 128 to 255
    assert green == pytest.approx(64, abs=2)
    assert (image[70:] == 128).all()
    assert (image[:, 100:] == 128).all()


def test_a_binary_mask_with_a_hole_leaves_the_hole_alone() -> None:
    holed = MASK.copy()
    holed[30:50, 50:70] = False
    image = Visualizer(GRAY).draw_binary_mask(holed.astype("uint8"), color="red").get_image()
    assert image[25, 35, 0] > 180
    assert image[40, 60].tolist() == [128, 128, 128]
    written = Visualizer(GRAY).draw_binary_mask(holed.astype("uint8"), color="red", text="hole").get_image()
    assert (written != image).any()


def test_primitives_draw_where_they_are_told() -> None:
    visualizer = Visualizer(np.zeros_like(GRAY))
    visualizer.draw_circle((20, 20), "lime", radius=5)
    visualizer.draw_line([60, 60], [10, 90], "red")
    visualizer.draw_polygon(np.array([[100, 20], [130, 20], [130, 50], [100, 50]]), "blue", alpha=1.0)
    visualizer.draw_box((80, 60, 120, 90), alpha=1.0, edge_color="yellow")
    image = visualizer.get_output().get_image()
    assert image[20, 20].tolist() == [0, 255, 0]
    assert image[50, 60, 0] > 200
    assert image[35, 115].tolist() == [0, 0, 255]
    assert image[75, 80, :2].min() > 200
    assert image[75, 100].tolist() == [0, 0, 0]


def test_saved_pictures_look_like_the_drawn_ones(tmp_path: Path) -> None:
    visualizer = Visualizer(GRAY, META)
    output = visualizer.draw_instance_predictions(detections())
    output.save(str(tmp_path / "a.png"))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png").convert("RGB")), output.get_image())


def test_colours() -> None:
    colors = colormap(rgb=True, maximum=1)
    assert colors.shape[1] == 3
    assert colors.min() >= 0
    assert colors.max() <= 1
    np.testing.assert_allclose(colormap(), colors[:, ::-1] * 255)
    np.random.seed(1)
    index = np.random.randint(0, len(colors))
    np.random.seed(1)
    np.testing.assert_allclose(random_color(rgb=True, maximum=1), colors[index])
