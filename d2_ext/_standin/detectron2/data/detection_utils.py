"""Parts of a mapper: read pictures, transform annotations, make ``Instances`` of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2._missing import refuse
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.structures.keypoints import Keypoints
from detectron2.structures.masks import BitMasks, PolygonMasks, polygons_to_bitmask
from detectron2.utils.file_io import PathManager
from PIL import Image

from . import transforms as T
from .catalog import MetadataCatalog

__all__ = [
    "SizeMismatchError",
    "convert_image_to_rgb",
    "check_image_size",
    "transform_instance_annotations",
    "annotations_to_instances",
    "build_augmentation",
    "build_transform_gen",
    "create_keypoint_hflip_indices",
    "filter_empty_instances",
    "read_image",
]

__getattr__ = refuse(
    __name__, ["transform_proposals", "annotations_to_instances_rotated", "get_fed_loss_cls_weights", "RotatedBoxes"]
)

logger = logging.getLogger(__name__)

# ITU-R BT.601, from RGB in 0..1 to YUV; the way back is rounded in the standard and hence not the exact inverse.
_M_RGB2YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_M_YUV2RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])

_EXIF_ORIENTATION_TAG = 274
_TRANSPOSE_FOR_ORIENTATION = {
    2: Image.FLIP_LEFT_RIGHT,
    3: Image.ROTATE_180,
    4: Image.FLIP_TOP_BOTTOM,
    5: Image.TRANSPOSE,
    6: Image.ROTATE_270,
    7: Image.TRANSVERSE,
    8: Image.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """The picture does not have the width and height that its record says."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Convert a Pillow picture to (H, W[, C]); see :func:`read_image` for ``format``."""
    if format is not None:
        image = image.convert("RGB" if format in ("BGR", "YUV-BT.601") else format)
    array = np.asarray(image)
    if format == "BGR":
        return array[:, :, ::-1]
    if format == "L":
        return array[:, :, None]
    if format == "YUV-BT.601":
        return np.dot(array / 255.0, _M_RGB2YUV.T)
    return array


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Convert (H, W, C) of the given format to (H, W, 3) RGB in 0..255, uint8 or float; the way back of a read."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy()
    if format == "BGR":
        return image[:, :, [2, 1, 0]]
    if format == "YUV-BT.601":
        return np.dot(image, _M_YUV2RGB.T) * 255.0
    image = (image[:, :, 0] if format == "L" else image).astype(np.uint8)
    return np.asarray(Image.fromarray(image, mode=format).convert("RGB"))


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Turn the picture upright if its EXIF data says how."""
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION_TAG)
    except Exception as e:  # broken EXIF data fails in many ways, and must not cost the picture
        logger.debug("EXIF data of a picture cannot be read (%s); it is taken to be upright", e)
        return image
    method = _TRANSPOSE_FOR_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read a picture, turned upright by its EXIF orientation.

    Args:
        file_name: path.
        format: a mode of Pillow, ``"BGR"``, ``"YUV-BT.601"``, or None for the mode of the file.

    Returns:
        (H, W, C) uint8 in 0..255, (H, W, 1) for ``"L"``; float for YUV, Y in 0..1.
    """
    with PathManager.open(file_name, "rb") as f:
        return convert_PIL_to_numpy(_apply_exif_orientation(Image.open(f)), format)


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Compare the record's ``width`` and ``height`` with the (H, W[, C]) picture; fill in what is missing.

    Raises:
        SizeMismatchError: they differ, e.g. because the annotations were made for the unrotated file.
    """
    height, width = image.shape[:2]
    expected = dataset_dict.get("width", width), dataset_dict.get("height", height)
    if expected != (width, height):
        raise SizeMismatchError(
            f"picture {dataset_dict.get('file_name', '')} has (width, height) {(width, height)}, its record says "
            f"{expected}; correct the width and height in the annotations"
        )
    dataset_dict.setdefault("width", width)
    dataset_dict.setdefault("height", height)


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: T.TransformList | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Transform box, segmentation and keypoints of one annotation, in place.

    Args:
        annotation: ``bbox`` with ``bbox_mode``, optionally ``segmentation`` (polygons or RLE) and ``keypoints``.
        transforms: what was done to the picture.
        image_size: (height, width) px of the transformed picture.
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`; needed if a flip meets keypoints.

    Returns:
        The same dict; ``bbox`` is now XYXY_ABS px of the transformed picture, clipped to it.
    """
    if isinstance(transforms, (tuple, list)):
        transforms = T.TransformList(transforms)
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    height, width = image_size
    moved = transforms.apply_box(np.array([box]))[0].clip(min=0)
    annotation["bbox"] = np.minimum(moved, [width, height, width, height])
    annotation["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        annotation["segmentation"] = _transform_segmentation(annotation["segmentation"], transforms, image_size)
    if "keypoints" in annotation:
        annotation["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return annotation


def _transform_segmentation(segmentation: Any, transforms: T.TransformList, image_size: tuple[int, int]) -> Any:
    """Polygons to polygons (flat px arrays), RLE to a (height, width) mask."""
    if isinstance(segmentation, list):
        polygons = transforms.apply_polygons([np.asarray(p).reshape(-1, 2) for p in segmentation])
        return [p.reshape(-1) for p in polygons]
    if isinstance(segmentation, dict):
        mask = transforms.apply_segmentation(mask_util.decode(segmentation))
        assert tuple(mask.shape[:2]) == tuple(image_size), (mask.shape, image_size)
        return mask
    raise ValueError(f"segmentation must be a list of polygons or an RLE dict, got {type(segmentation)}")


def transform_keypoint_annotations(
    keypoints: Sequence[float],
    transforms: T.TransformList,
    image_size: tuple[int, int],
    keypoint_hflip_indices: Sequence[int] | None = None,
) -> np.ndarray:
    """Transform the keypoints of one instance.

    Args:
        keypoints: N*3 numbers x, y px, visibility.
        transforms: what was done to the picture.
        image_size: (height, width) px of the transformed picture.
        keypoint_hflip_indices: which keypoint takes the place of each after a horizontal flip.

    Returns:
        (N, 3) float64; points outside the picture become "not labelled", which is all zeros.
    """
    points = np.asarray(keypoints, dtype="float64").reshape(-1, 3)
    points = np.concatenate([transforms.apply_coords(points[:, :2].copy()), points[:, 2:]], axis=1)
    height, width = image_size
    outside = ((points[:, :2] < 0) | (points[:, :2] > (width, height))).any(axis=1)
    points[outside, 2] = 0

    flips = sum(isinstance(t, T.HFlipTransform) for t in transforms.transforms)
    if flips % 2 == 1:  # left and right change their names
        if keypoint_hflip_indices is None:
            raise ValueError("keypoints were flipped, but keypoint_hflip_indices is missing")
        if len(points) != len(keypoint_hflip_indices):
            raise ValueError(f"{len(points)} keypoints, but the metadata knows {len(keypoint_hflip_indices)}")
        points = points[np.asarray(keypoint_hflip_indices, dtype=np.int32)]
    points[points[:, 2] == 0] = 0
    return points


def annotations_to_instances(
    annos: Sequence[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Collect transformed annotations of one picture into what models train on.

    Args:
        annos: with ``bbox``, ``bbox_mode``, ``category_id``; ``segmentation`` and ``keypoints`` for all or for none.
        image_size: (height, width) px.
        mask_format: ``"polygon"`` or ``"bitmask"``.

    Returns:
        ``gt_boxes`` (N, 4) XYXY px, ``gt_classes`` (N,) int64, and ``gt_masks``, ``gt_keypoints`` if there are any.
    """
    target = Instances(image_size)
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annos]
    target.gt_boxes = Boxes(np.stack(boxes) if boxes else np.zeros((0, 4)))
    target.gt_classes = torch.tensor([int(a["category_id"]) for a in annos], dtype=torch.int64)
    if len(annos) and "segmentation" in annos[0]:
        target.gt_masks = _make_masks([a["segmentation"] for a in annos], image_size, mask_format)
    if len(annos) and "keypoints" in annos[0]:
        target.gt_keypoints = Keypoints([a.get("keypoints", []) for a in annos])
    return target


def _make_masks(segmentations: list[Any], image_size: tuple[int, int], mask_format: str) -> PolygonMasks | BitMasks:
    if mask_format == "polygon":
        try:
            return PolygonMasks(segmentations)
        except ValueError as e:
            raise ValueError("some segmentations are not polygons; set INPUT.MASK_FORMAT to 'bitmask'") from e
    assert mask_format == "bitmask", f"mask_format must be 'polygon' or 'bitmask', got {mask_format!r}"
    masks = [_rasterize(segmentation, image_size) for segmentation in segmentations]
    return BitMasks(torch.stack([torch.from_numpy(np.ascontiguousarray(mask)) for mask in masks]))


def _rasterize(segmentation: Any, image_size: tuple[int, int]) -> np.ndarray:
    """(height, width) mask from polygons, RLE, or such a mask."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    if isinstance(segmentation, dict):
        return mask_util.decode(segmentation)
    if isinstance(segmentation, np.ndarray):
        assert segmentation.ndim == 2, f"expected a mask (H, W), got shape {segmentation.shape}"
        return segmentation
    raise ValueError(
        f"cannot make a mask of {type(segmentation)}; give a list of polygons, an RLE dict or an (H, W) array"
    )


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Drop instances whose box or mask is empty.

    Args:
        instances: with ``gt_boxes``, perhaps ``gt_masks``.
        by_box: look at the boxes.
        by_mask: look at the masks, if there are any.
        box_threshold: a box is empty if a side is at most this many px.
        return_mask: also return the (N,) bool tensor of those kept.
    """
    assert by_box or by_mask, "nothing to filter by"
    keep = torch.ones(len(instances), dtype=torch.bool, device=instances.gt_boxes.device)
    if by_box:
        keep = keep & instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        keep = keep & instances.gt_masks.nonempty().to(keep.device)
    return (instances[keep], keep) if return_mask else instances[keep]


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """For each keypoint, the index of the one that takes its place in a mirrored picture (from the metadata)."""
    names = [dataset_names] if isinstance(dataset_names, str) else dataset_names
    check_metadata_consistency("keypoint_names", names)
    check_metadata_consistency("keypoint_flip_map", names)
    meta = MetadataCatalog.get(names[0])
    partner = {}
    for left, right in meta.keypoint_flip_map:
        partner[left], partner[right] = right, left
    return [meta.keypoint_names.index(partner.get(name, name)) for name in meta.keypoint_names]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict[str, Any]
) -> T.CropTransform:
    """Draw a crop that contains the centre of an instance.

    Args:
        crop_size: (height, width) px, not larger than the picture.
        image_size: (height, width) px.
        instance: annotation with ``bbox`` and ``bbox_mode``.
    """
    x0, y0, x1, y1 = BoxMode.convert(instance["bbox"], instance["bbox_mode"], BoxMode.XYXY_ABS)
    starts = []
    for side, extent, center in zip(crop_size, image_size, ((y0 + y1) * 0.5, (x0 + x1) * 0.5)):
        assert extent >= center, f"the box {instance['bbox']} lies outside the picture of {image_size}"
        assert extent >= side, f"a crop of {crop_size} does not fit into a picture of {image_size}"
        first = max(int(np.floor(center)) - int(side), 0)
        last = min(max(int(extent) - int(side), 0), int(np.ceil(center)))
        starts.append(np.random.randint(first, last + 1))
    return T.CropTransform(starts[1], starts[0], int(crop_size[1]), int(crop_size[0]))


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Make sure that all data sets have the same metadata under ``key``.

    Raises:
        AttributeError: a data set has none.
        ValueError: two data sets differ.
    """
    values = [getattr(MetadataCatalog.get(name), key) for name in dataset_names]
    for name, value in zip(dataset_names, values):
        if value != values[0]:
            raise ValueError(
                f"data sets have different metadata '{key}': {value} in '{name}', {values[0]} in '{dataset_names[0]}'"
            )


def build_augmentation(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """The augmentations of the config: scaling of the shortest edge and, for training, a flip."""
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    sampling = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    augmentations = [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, sampling)]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations


build_transform_gen = build_augmentation  # its name in earlier versions
