"""What a run leaves behind, listed at its end."""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)

# Glob below the run folder -> what it is. In the order of the list that users see.
OUTPUTS = {
    "config.yaml": "the full config of this run",
    "run.json": "command, seed, commit and environment",
    "log.txt": "everything printed",
    "metrics.json": "losses and metrics, one JSON object per line",
    "events.out.tfevents.*": "the same for TensorBoard",
    "wandb_run_id.txt": "the run of Weights & Biases; --resume goes on with it",
    "model_final.pth": "the trained model; evaluate it with --eval-only MODEL.WEIGHTS",
    "MODEL_CARD.md": "what it is, how well it does, how to use it",
    "model_final_ema.pth": "the averaged weights, for deployment",
    "model_best.pth": "the weights of the best evaluation",
    "inference/**/coco_instances_results.json": "detections as COCO results",
    "inference/**/*_detections.jpg": "images with ground truth and detections",
    "inference/**/*_masks.jpg": "activation masks: where the sparse head computed",
}


def list_outputs(output_dir: str) -> list[tuple[Path, str]]:
    """Find the files of a run that a user wants to open.

    Returns:
        (path, description) in a fixed order; of several files that match one description, the newest event file or
        the first of the others stands for all, with their count in the description.
    """
    found = []
    for pattern, what in OUTPUTS.items():
        paths = sorted(Path(output_dir).glob(pattern))
        if paths:
            several = f" ({len(paths)} files)" if len(paths) > 1 else ""
            path = max(paths, key=lambda p: p.stat().st_mtime) if "tfevents" in pattern else paths[0]
            found.append((path, what + several))
    return found


def log_outputs(output_dir: str) -> None:
    """Log where everything is that :func:`list_outputs` finds."""
    rows = list_outputs(output_dir)
    width = max((len(str(path)) for path, _ in rows), default=0)
    lines = "".join(f"\n  {path!s:<{width}}  {what}" for path, what in rows)
    logger.info("Written to %s:%s", Path(output_dir).resolve(), lines)
