"""Transforms (what is done to a picture and its labels) and augmentations (which transform is done)."""

from fvcore.transforms.transform import *  # noqa: F403
from fvcore.transforms.transform import Transform, TransformList

from .augmentation import *  # noqa: F403
from .augmentation_impl import *  # noqa: F403
from .transform import *  # noqa: F403

__all__ = [name for name in globals() if not name.startswith("_")]
