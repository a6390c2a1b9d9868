"""Reading of images and preparation of annotations, for mappers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2._missing import refuse
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from . import transforms as T
from .catalog import MetadataCatalog

__getattr__ = refuse(__name__, "create_keypoint_hflip_indices transform_keypoint_annotations")

_YUV = "YUV-BT.601"
_RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]])
_YUV_TO_RGB = np.array([[1.0, 0.0, 1.13983], [1.0, -0.39465, -0.58060], [1.0, 2.03211, 0.0]])


class SizeMismatchError(ValueError):
    """The size in a record is not that of its image."""


def convert_PIL_to_numpy(image: Image.Image, format: str | None) -> np.ndarray:
    """Make an (H, W, C) array of a Pillow image.

    ``format`` is a mode of Pillow, "BGR", or "YUV-BT.601", which gives floats; None keeps the image's own mode.
    """
    pixels = np.asarray(image if format is None else image.convert("RGB" if format in ("BGR", _YUV) else format))
    if format == "L":
        return pixels[:, :, np.newaxis]
    if format == _YUV:
        return pixels / 255.0 @ _RGB_TO_YUV.T
    return pixels[:, :, ::-1] if format == "BGR" else pixels


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Make an (H, W, 3) RGB array of an (H, W, C) image in one of the formats of :func:`convert_PIL_to_numpy`.

    Floats of "YUV-BT.601" become floats of 0..255; other images stay what they are, or become uint8.
    """
    pixels = image.cpu().numpy() if isinstance(image, torch.Tensor) else image
    if format == "BGR":
        return pixels[:, :, ::-1]
    if format == _YUV:
        return pixels @ _YUV_TO_RGB.T * 255.0
    size = pixels.shape[1::-1]
    return np.asarray(Image.frombytes(format, size, np.ascontiguousarray(pixels, np.uint8).tobytes()).convert("RGB"))


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image file, turned upright as its EXIF data says; see :func:`convert_PIL_to_numpy`."""
    with Image.open(PathManager.get_local_path(file_name)) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return convert_PIL_to_numpy(image, format)


def check_image_size(dataset_dict: dict[str, Any], image: np.ndarray) -> None:
    """Fill the size of the (H, W, ...) image in, or raise SizeMismatchError if the record has another one."""
    for key, side in zip(("height", "width"), image.shape):
        if dataset_dict.setdefault(key, side) != side:
            raise SizeMismatchError(
                f"{dataset_dict.get('file_name', 'The image')} is {image.shape[1]} x {image.shape[0]} px after EXIF "
                f"orientation, but its record has {key} {dataset_dict[key]}. Correct the size in the annotations."
            )


def transform_instance_annotations(
    annotation: dict[str, Any],
    transforms: T.TransformList | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Let one object follow its image, which after the transforms has ``image_size``, (height, width) px.

    Gives the dict itself, changed: the box as XYXY px clipped to the image; polygons as flat arrays; RLE as an (H, W)
    array. NotImplementedError for keypoints; ValueError for a segmentation that is neither polygons nor RLE.
    """
    if "keypoints" in annotation:
        raise NotImplementedError("Keypoints need Detectron2 itself; leave them out of the annotations.")
    applied = transforms if isinstance(transforms, T.Transform) else T.TransformList(transforms)
    transform_objects([annotation], applied, image_size)
    return annotation


def transform_objects(annos: Sequence[dict[str, Any]], transforms: T.Transform, image_size: tuple[int, int]) -> None:
    """Do :func:`transform_instance_annotations` with many objects; their boxes go together, which is faster."""
    if not annos:
        return
    corners = [BoxMode.convert(anno["bbox"], anno["bbox_mode"], BoxMode.XYXY_ABS) for anno in annos]
    boxes = transforms.apply_box(np.array(corners).reshape(-1, 4)).clip(0, [*image_size[::-1], *image_size[::-1]])
    for anno, box in zip(annos, boxes):
        anno["bbox"], anno["bbox_mode"] = box, BoxMode.XYXY_ABS
        if "segmentation" in anno:
            anno["segmentation"] = _transform_shape(anno["segmentation"], transforms, image_size)


def _transform_shape(shape: Any, transforms: T.Transform, image_size: tuple[int, int]) -> Any:
    if isinstance(shape, list):
        moved = transforms.apply_polygons([np.asarray(polygon).reshape(-1, 2) for polygon in shape])
        return [points.reshape(-1) for points in moved]
    if not isinstance(shape, Mapping):
        raise ValueError(f"A segmentation is a {type(shape).__name__}. Expected a list of polygons, or an RLE dict.")
    mask = transforms.apply_segmentation(mask_util.decode(shape))
    assert mask.shape[:2] == tuple(image_size), f"The mask is {mask.shape}. Expected the image's {image_size}."
    return mask


def annotations_to_instances(
    annos: Sequence[dict[str, Any]], image_size: tuple[int, int], mask_format: str = "polygon"
) -> Instances:
    """Put annotations, as :func:`transform_instance_annotations` returns them, into one object.

    It has ``gt_boxes``, ``gt_classes`` (int64), and ``gt_masks`` if the first annotation has a segmentation.
    ``image_size`` is (height, width) px; ``mask_format`` is "polygon" or "bitmask", and ValueError says that it does
    not fit.
    """
    corners = [BoxMode.convert(anno["bbox"], anno["bbox_mode"], BoxMode.XYXY_ABS) for anno in annos]
    classes = torch.tensor([int(anno["category_id"]) for anno in annos], dtype=torch.int64)
    found = Instances(image_size, gt_boxes=Boxes(np.array(corners).reshape(-1, 4)), gt_classes=classes)
    if annos and "segmentation" in annos[0]:
        assert mask_format in ("polygon", "bitmask"), f"mask_format is {mask_format!r}. Expected polygon or bitmask."
        shapes = [anno["segmentation"] for anno in annos]
        if mask_format == "bitmask":
            found.gt_masks = BitMasks(torch.from_numpy(np.stack([_bitmap(shape, image_size) for shape in shapes])))
        elif all(isinstance(shape, list) for shape in shapes):
            found.gt_masks = PolygonMasks(shapes)
        else:
            raise ValueError("A segmentation is no list of polygons. For RLE set INPUT.MASK_FORMAT to bitmask.")
    return found


def _bitmap(shape: Any, image_size: tuple[int, int]) -> np.ndarray:
    """(H, W) mask of polygons, of an RLE, or of what is a mask already."""
    if isinstance(shape, list):
        return BitMasks.from_polygon_masks([shape], *image_size).tensor[0].numpy()
    mask = mask_util.decode(shape) if isinstance(shape, Mapping) else shape
    if not isinstance(mask, np.ndarray):
        raise ValueError(f"A segmentation is a {type(shape).__name__}. Expected polygons, an RLE dict or an array.")
    assert mask.ndim == 2, f"A mask has shape {mask.shape}. Expected (H, W)."
    return mask


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """Drop objects of which an augmentation left nothing.

    These are boxes with a side of at most ``box_threshold`` px and empty ``gt_masks``, if there are any. With
    ``return_mask`` comes as well, as (N,) bool, which are kept.
    """
    assert by_box or by_mask, "by_box and by_mask are both False. Expected at least one of them."
    kept = instances.gt_boxes.nonempty(threshold=box_threshold) if by_box else None
    if by_mask and instances.has("gt_masks"):
        shown = instances.gt_masks.nonempty()
        kept = shown if kept is None else kept & shown
    if kept is None:
        return instances
    return (instances[kept], kept) if return_mask else instances[kept]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict[str, Any]
) -> T.CropTransform:
    """Draw a crop of ``crop_size`` from ``image_size``, (height, width) px, that contains the center of an object."""
    box = BoxMode.convert(instance["bbox"], instance["bbox_mode"], BoxMode.XYXY_ABS)
    center = np.asarray(box, dtype=float).reshape(2, 2).mean(axis=0)[::-1]  # y, x
    size, crop = np.array(image_size), np.asarray(crop_size, dtype=int)
    assert ((center >= 0) & (center <= size)).all(), f"The center of box {box} is outside the image of {size} px."
    assert (crop <= size).all(), f"The crop of {crop} px is larger than the image of {size} px."
    lowest = np.maximum(np.floor(center).astype(int) - crop, 0)
    highest = np.minimum(size - crop, np.ceil(center).astype(int))
    top, left = (int(np.random.randint(first, last + 1)) for first, last in zip(lowest, highest))
    return T.CropTransform(left, top, int(crop[1]), int(crop[0]))


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Raise ValueError if data sets differ in the metadata of that key, AttributeError if one has none."""
    values = {name: getattr(MetadataCatalog.get(name), key) for name in dataset_names}
    for name, value in values.items():
        if value != values[dataset_names[0]]:
            raise ValueError(
                f"Data sets {dataset_names[0]!r} and {name!r} differ in {key!r}: {values[dataset_names[0]]!r} and "
                f"{value!r}. Data sets that are used together need the same."
            )


def build_augmentation(cfg: Any, is_train: bool) -> list[T.Augmentation]:
    """Augmentations of a config: scaling of the shortest edge, and for training the flip of ``INPUT.RANDOM_FLIP``.

    The crop of ``INPUT.CROP`` is not among them; ``DatasetMapper`` adds it.
    """
    options = cfg.INPUT
    if not is_train:
        return [T.ResizeShortestEdge(options.MIN_SIZE_TEST, options.MAX_SIZE_TEST, "choice")]
    scaling = T.ResizeShortestEdge(options.MIN_SIZE_TRAIN, options.MAX_SIZE_TRAIN, options.MIN_SIZE_TRAIN_SAMPLING)
    if options.RANDOM_FLIP == "none":
        return [scaling]
    which = {direction: direction == options.RANDOM_FLIP for direction in ("horizontal", "vertical")}
    return [scaling, T.RandomFlip(**which)]


build_transform_gen = build_augmentation
