"""What augmentations are: they look at an input, draw a transform, and apply it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = [
    "AugInput", "Augmentation", "AugmentationList", "StandardAugInput", "TransformGen", "apply_augmentations",
    "apply_transform_gens",
]  # fmt: skip


class Augmentation:
    """Draws transforms.

    A subclass defines :meth:`get_transform`. Its parameters say by name which attributes of the input it looks at; a
    single one is the image, whatever its name. :attr:`input_args` may name the attributes instead.
    """

    input_args: tuple[str, ...] | None = None

    _init = Transform._set_attributes  # keeps the arguments of __init__, given as locals(), as attributes

    def get_transform(self, *args: Any) -> Transform:
        """Draw a transform for the given attributes of an input."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform.")

    def __call__(self, aug_input: Any) -> Transform:
        """Draw a transform and apply it to an :class:`AugInput`, or an object like it, in place."""
        names = self.input_args or _attributes_asked_for(type(self).get_transform)
        lacking = [name for name in names if not hasattr(aug_input, name)]
        if lacking:
            raise AttributeError(f"{self} looks at {lacking}, which the {type(aug_input).__name__} has not.")
        transform = self.get_transform(*(getattr(aug_input, name) for name in names))
        assert isinstance(transform, Transform), f"{self} drew a {type(transform).__name__}. Expected a Transform."
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = ()) -> Any:
        """Draw evenly between ``low`` and ``high``, or between 0 and ``low``."""
        return np.random.uniform(*((0, low) if high is None else (low, high)), size=list(size))

    def __repr__(self) -> str:
        try:
            return Transform.__repr__(self)  # class, and what differs from the defaults, if these are attributes
        except TypeError:
            return super().__repr__()


@functools.cache
def _attributes_asked_for(get_transform: Callable[..., Transform]) -> tuple[str, ...]:
    """What ``get_transform`` of an augmentation wants to see of an input."""
    parameters = [*inspect.signature(get_transform).parameters.values()][1:]
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return tuple(named) if len(named) > 1 else ("image",) * len(parameters)


class _Always(Augmentation):
    """An augmentation that always draws the same transform."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def get_transform(self, image: np.ndarray) -> Transform:
        return self.transform

    def __repr__(self) -> str:
        return repr(self.transform)


def _as_augmentation(what: Augmentation | Transform) -> Augmentation:
    if isinstance(what, Augmentation):
        return what
    assert isinstance(what, Transform), f"Got a {type(what).__name__}. Expected an Augmentation or a Transform."
    return _Always(what)


class AugmentationList(Augmentation):
    """Augmentations or transforms one after the other; each sees what the one before left."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        self.augs = [_as_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: Any) -> TransformList:
        """Apply all to the input, in place; returns the transforms drawn."""
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(repr, self.augs))}]"


class AugInput:
    """What augmentations look at and change.

    ``image`` is (H, W) or (H, W, C), uint8 or float; ``boxes`` are (N, 4) XYXY px; ``sem_seg`` has (H, W) labels.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        assert isinstance(image, np.ndarray), f"The image is a {type(image).__name__}. Expected an array."
        assert image.ndim in (2, 3), f"The image has shape {image.shape}. Expected (H, W) or (H, W, C)."
        self.image, self.boxes, self.sem_seg = image, boxes, sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to all there is."""
        for name, method in (("image", "apply_image"), ("boxes", "apply_box"), ("sem_seg", "apply_segmentation")):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(tfm, method)(getattr(self, name)))

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Apply augmentations; returns the transforms drawn."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations: Sequence[Augmentation | Transform], inputs: Any) -> tuple[Any, TransformList]:
    """Augment an :class:`AugInput`, in place, or an image; returns the same kind, and the transforms drawn."""
    seen = AugInput(inputs) if isinstance(inputs, np.ndarray) else inputs
    transforms = AugmentationList(augmentations)(seen)
    return seen.image if isinstance(inputs, np.ndarray) else seen, transforms


TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
