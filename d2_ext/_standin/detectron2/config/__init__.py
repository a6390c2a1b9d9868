"""Configs: nodes with attributes, their defaults, YAML files with inheritance, and constructors that take a config."""

from detectron2._missing import refuse
from detectron2.config.compat import downgrade_config, upgrade_config
from detectron2.config.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__all__ = [
    "CfgNode",
    "configurable",
    "downgrade_config",
    "get_cfg",
    "global_cfg",
    "set_global_cfg",
    "upgrade_config",
]

__getattr__ = refuse(__name__, ["LazyCall", "LazyConfig", "instantiate"])
