"""Transforms, which do the same each time, and augmentations, which draw at random what transform it shall be."""

from detectron2._missing import refuse
from fvcore.transforms.transform import *  # noqa: F403

from .augmentation import *  # noqa: F403
from .augmentation_impl import *  # noqa: F403
from .transform import *  # noqa: F403

__all__ = [name for name in globals() if not name.startswith("_") and name != "refuse"]
__getattr__ = refuse(__name__, "MinIoURandomCrop RandomCrop_CategoryAreaConstraint RandomExtent RandomResize")
