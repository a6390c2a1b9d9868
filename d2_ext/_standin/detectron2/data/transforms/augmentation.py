"""Augmentations decide, mostly at random, on a transform; an input knows how to transform what it carries."""

from __future__ import annotations

import inspect
import pprint
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "Augmentation",
    "AugmentationList",
    "AugInput",
    "TransformGen",
    "apply_transform_gens",
    "StandardAugInput",
    "apply_augmentations",
]

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Augmentation:
    """A policy from which :meth:`get_transform` draws a deterministic transform.

    The names of :meth:`get_transform`'s arguments select attributes of the input: ``image`` (H, W[, C]) uint8 or float,
    ``boxes`` (N, 4) XYXY px of the current picture, ``sem_seg`` (H, W), or whatever a custom input carries. A single
    argument always means the image, whatever its name. Randomness comes from numpy's global generator.
    """

    # Attributes of the input that get_transform wants; None to read them off its signature at the first call.
    input_args: tuple[str, ...] | None = None

    def _init(self, params: Mapping[str, Any] | None = None) -> None:
        """Store constructor arguments, usually ``locals()``, as attributes (needed by ``repr``)."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args: Any) -> Transform:
        """Decide on the transform for this input.

        Args:
            *args: attributes of the input, chosen by the names in the overriding method's signature.

        Returns:
            A transform that can be applied again to further data of the same picture.
        """
        raise NotImplementedError

    def _read_input_args(self) -> tuple[str, ...]:
        params = inspect.signature(self.get_transform).parameters
        if len(params) == 1:
            return ("image",)
        if any(p.kind in _VARIADIC for p in params.values()):
            raise TypeError(
                f"{type(self).__name__}.get_transform takes *args or **kwargs, so its inputs have no names; "
                "name them, or override __call__"
            )
        return tuple(params)

    def __call__(self, aug_input: Any) -> Transform:
        """Decide on a transform, apply it to ``aug_input`` in place and return it."""
        if self.input_args is None:
            self.input_args = self._read_input_args()
        try:
            args = [getattr(aug_input, name) for name in self.input_args]
        except AttributeError as e:
            raise AttributeError(
                f"{type(self).__name__}.get_transform wants {', '.join(self.input_args)} of its input, "
                f"but {type(aug_input).__name__} has no '{e.name}'"
            ) from e
        transform = self.get_transform(*args)
        if isinstance(transform, (Transform, TransformList)):
            aug_input.transform(transform)
            return transform
        raise AssertionError(f"{type(self).__name__}.get_transform must give a Transform, got {type(transform)}")

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Sequence[int] | None = None) -> Any:
        """Uniform number in [low, high), or in [0, low) with one argument."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, size if size is not None else [])

    def _shown_arguments(self) -> list[str] | None:
        """``name=value`` of constructor arguments that differ from their defaults; None if it cannot be told."""
        shown = []
        for name, param in inspect.signature(self.__init__).parameters.items():
            if param.kind in _VARIADIC or not hasattr(self, name):
                return None
            value = getattr(self, name)
            if value is param.default:
                continue
            text = pprint.pformat(value)
            shown.append(f"{name}={'...' if chr(10) in text else text}")
        return shown

    def __repr__(self) -> str:
        shown = self._shown_arguments()
        return super().__repr__() if shown is None else f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


class _TransformToAug(Augmentation):
    """A policy without choice."""

    def __init__(self, tfm: Transform) -> None:
        self.tfm = tfm

    def get_transform(self, *args: Any) -> Transform:
        return self.tfm

    def __call__(self, aug_input: Any) -> Transform:
        aug_input.transform(self.tfm)
        return self.tfm

    def __repr__(self) -> str:
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug: Transform | Augmentation) -> Augmentation:
    """Make a policy of a plain transform; leave a policy as it is."""
    assert isinstance(tfm_or_aug, (Transform, Augmentation)), tfm_or_aug
    return tfm_or_aug if isinstance(tfm_or_aug, Augmentation) else _TransformToAug(tfm_or_aug)


class AugmentationList(Augmentation):
    """Augmentations one after the other, each deciding on what the one before has left.

    Args:
        augs: augmentations or plain transforms.
    """

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """A picture with its boxes and its map of labels, which are transformed together.

    Other classes may take its place if they have the attributes that the augmentations want and :meth:`transform`.

    Args:
        image: (H, W) or (H, W, C), uint8 in 0..255 or float in 0..1 or 0..255.
        boxes: (N, 4) XYXY px of the picture, or None.
        sem_seg: (H, W) integer label of each pixel, or None.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        assert isinstance(image, np.ndarray), f"augmentations work on numpy arrays, got {type(image)}"
        assert image.ndim in (2, 3), f"expected an image (H, W) or (H, W, C), got shape {image.shape}"
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Transform everything that is there, in place."""
        applied = {"image": tfm.apply_image, "boxes": tfm.apply_box, "sem_seg": tfm.apply_segmentation}
        for name, apply in applied.items():
            if getattr(self, name) is not None:
                setattr(self, name, apply(getattr(self, name)))

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Apply a list of augmentations in place and return the transforms that were chosen."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations: Sequence[Augmentation | Transform], inputs: Any) -> tuple[Any, TransformList]:
    """Apply augmentations to an image or to an input object.

    Args:
        augmentations: applied in order.
        inputs: an image as in :class:`AugInput`, or an object like it.

    Returns:
        The transformed image if an image was given, else the input object itself; and the transforms.
    """
    if not isinstance(inputs, np.ndarray):
        return inputs, inputs.apply_augmentations(augmentations)
    wrapped = AugInput(inputs)
    transforms = wrapped.apply_augmentations(augmentations)
    return wrapped.image, transforms


# Names of earlier versions.
TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
