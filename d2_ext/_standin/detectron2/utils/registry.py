"""Registries, as fvcore has them."""

from detectron2._missing import refuse
from fvcore.common.registry import Registry

__all__ = ["Registry"]

__getattr__ = refuse(__name__, "locate")
