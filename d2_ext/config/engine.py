"""Config keys of the training loop: averaged weights, accumulated gradients, when to stop, what to repeat exactly."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_engine_config(cfg: CfgNode) -> None:
    """Add the keys that the training loop and its hooks read; all of them are off by default."""
    # Use only algorithms that give the same result each time, also on a GPU; slower, and an operation that has none
    # stops the run. See docs/determinism.md.
    cfg.DETERMINISTIC = False

    # Batches whose gradients are averaged before each step of the optimizer: SOLVER.IMS_PER_BATCH is then the number
    # of images in memory, and this times as many make a step. Iterations count steps.
    cfg.SOLVER.ACCUMULATE_BATCHES = 1
    # What an infinite or NaN loss does: "stop" the run before the weights change, or "skip" the step (after ten in a
    # row the run stops).
    cfg.SOLVER.NONFINITE_LOSS = "stop"

    cfg.SOLVER.EMA = CfgNode()
    # Exponential moving average of the weights: evaluated, and saved as model_final_ema.pth, in place of the trained
    # ones.
    cfg.SOLVER.EMA.ENABLED = False
    # Weight of the old average in a step, in [0, 1).
    cfg.SOLVER.EMA.DECAY = 0.9998
    # Steps over which the decay rises from 0: after t of them it is DECAY * (1 - exp(-t / WARMUP_ITERS)); 0: at once.
    cfg.SOLVER.EMA.WARMUP_ITERS = 2000

    cfg.TEST.BEST = CfgNode()
    # The metric that model_best.pth and early stopping go by, as metrics.json names it, such as "bbox/AP"; needs
    # TEST.EVAL_PERIOD > 0.
    cfg.TEST.BEST.METRIC = "bbox/AP"
    # "max" or "min": which values are good.
    cfg.TEST.BEST.MODE = "max"
    # Keep the weights of the best evaluation as model_best.pth.
    cfg.TEST.BEST.SAVE = False
    # Stop after this many evaluations in a row without a better one; 0: never.
    cfg.TEST.BEST.PATIENCE = 0
