"""The former place of ``register_coco_instances``."""

from .coco import register_coco_instances as register_coco_instances
