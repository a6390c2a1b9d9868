"""All config keys that d2_ext adds to Detectron2's, one file a group."""

from __future__ import annotations

from d2_ext.config.backbones import add_backbones_config
from d2_ext.config.ceasc import add_ceasc_config
from d2_ext.config.defcn import add_defcn_config
from d2_ext.config.fcos import add_fcos_config
from d2_ext.config.gfl import add_gfl_config
from d2_ext.config.run import add_data_config, add_run_config

from detectron2.config import CfgNode

__all__ = ["add_d2_ext_config"]


def add_d2_ext_config(cfg: CfgNode) -> None:
    """Add every key of d2_ext with its default to a config made by ``detectron2.config.get_cfg()``.

    Args:
        cfg: changed in place; keys of Detectron2 keep their defaults.
    """
    add_data_config(cfg)
    add_run_config(cfg)
    add_ceasc_config(cfg)
    add_fcos_config(cfg)
    add_gfl_config(cfg)
    add_defcn_config(cfg)
    add_backbones_config(cfg)
