"""Config keys of CEASC (adaptive sparse convolution with global context)."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_ceasc_config(cfg: CfgNode) -> None:
    """Add ``MODEL.CEASC``."""
    cfg.MODEL.CEASC = CfgNode()
