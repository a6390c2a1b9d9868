"""Config keys of logging to Weights & Biases, beside ``metrics.json`` and TensorBoard."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_wandb_config(cfg: CfgNode) -> None:
    """Add the keys that :mod:`d2_ext.engine.wandb_writer` reads; it is off by default."""
    cfg.WANDB = CfgNode()
    # Log to Weights & Biases what TensorBoard gets, too. It sends the metrics and the config to the server that the
    # package is logged in to; needs: pip install d2_ext[wandb].
    cfg.WANDB.ENABLED = False
    # Project of the run.
    cfg.WANDB.PROJECT = "d2_ext"
    # Name of the run; "": the name of OUTPUT_DIR.
    cfg.WANDB.NAME = ""
    # "online", "offline" (files below OUTPUT_DIR/wandb for `wandb sync`) or "": as the environment's WANDB_MODE says.
    cfg.WANDB.MODE = ""
