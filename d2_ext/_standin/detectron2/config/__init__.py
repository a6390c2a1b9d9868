"""Configs: the tree of keys with its defaults, its files, and classes built from it."""

from detectron2._missing import refuse
from detectron2.config.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]

__getattr__ = refuse(__name__, "LazyCall LazyConfig downgrade_config instantiate upgrade_config")
