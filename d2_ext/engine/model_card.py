"""``MODEL_CARD.md`` beside ``model_final``: what was trained on what, how well it does, and how to use it."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import d2_ext
from d2_ext.files import replacing

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from torch import nn

__all__ = ["MODEL_CARD", "write_model_card"]

MODEL_CARD = "MODEL_CARD.md"
_CARD = """# {title}

Written at the end of the training. What only people know is missing: where the images come from and under which
licence, what the detector is for, and where it fails.

## Use it

    {predict}

## What it is

{facts}

Classes: {classes}

## Figures

{figures}

## Repeat it

{repeat}

With d2_ext {version} on {detectron2}, torch {torch}. `config.yaml` has every setting, `run.json` the environment.
"""


def write_model_card(
    cfg: CfgNode, model: nn.Module, class_names: Sequence[str], iterations: int, results: Mapping[str, Any] | None
) -> Path:
    """Write the card of a finished training; whole, or not at all.

    The same training gives the same card, whether it was interrupted or not.

    Args:
        cfg: of the run; the card goes to ``OUTPUT_DIR``.
        model: of which parameters are counted.
        class_names: K names.
        iterations: that were made.
        results: of the last evaluation, as evaluators return them; none if nothing was evaluated.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written, or ``run.json`` cannot be read.
    """
    weights = "model_final_ema.pth" if cfg.SOLVER.EMA.ENABLED else "model_final.pth"
    train, test = (", ".join(map(_code, names)) or "nothing" for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
    batch = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATE_BATCHES
    seed = f", seed {cfg.SEED}" if cfg.SEED >= 0 else ""
    facts = {
        "detector": f"{_code(cfg.MODEL.META_ARCHITECTURE)} on {_code(cfg.MODEL.BACKBONE.NAME)}",
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million",
        "trained on": train
        + (f", of the folder {_code(Path(cfg.DATASETS.FOLDER).name)}" if cfg.DATASETS.FOLDER else ""),
        "started from": _code(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else "random weights",
        "training": f"{iterations} iterations of {batch} images, learning rate {cfg.SOLVER.BASE_LR:g}{seed}",
        "shorter side in tests": f"{cfg.INPUT.MIN_SIZE_TEST} px" if cfg.INPUT.MIN_SIZE_TEST else "the image's own",
    }
    figures = "Nothing was evaluated."
    numbers = flatten_results_dict(results or {})
    if numbers:
        rows = [
            f"| {_code(name)} | {value:.4g} |" if math.isfinite(value) else f"| {_code(name)} | none |"
            for name, value in numbers.items()
        ]
        ema = ", of the averaged weights" if cfg.SOLVER.EMA.ENABLED else ""
        figures = "\n".join([f"Last evaluation, on {test}{ema}:", "", "| metric | value |", "|---|---|", *rows])
    command = _first_command(Path(cfg.OUTPUT_DIR))
    text = _CARD.format(
        title=f"{cfg.MODEL.META_ARCHITECTURE}, {len(class_names)} classes",
        predict=f"d2_ext predict --weights {weights} IMAGES --output predicted",
        facts="\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]),
        classes=", ".join(map(_code, class_names)) or "without names",
        figures=figures,
        repeat=f"    {command}" if command else "Train with `config.yaml`.",
        version=d2_ext.__version__,
        detectron2={"stock": "Detectron2", "standin": "its stand-in for Detectron2"}[d2_ext.ensure_detectron2()],
        torch=torch.__version__,
    )
    path = Path(cfg.OUTPUT_DIR) / MODEL_CARD
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _code(text: object) -> str:
    """A name as code, also within a table: those of classes and data may be anything."""
    return "`" + " ".join(str(text).replace("`", "'").replace("|", "/").split()) + "`"


def _first_command(folder: Path) -> str:
    """The command line that began the run, without ``--resume``; empty if none is recorded.

    Raises:
        OSError: it cannot be read.
    """
    try:
        words = json.loads((folder / "run.json").read_text(encoding="utf-8"))["starts"][0]["command"][1:]
        script, *arguments = (str(word) for word in words if word != "--resume")
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return ""
    program = ["d2_ext"] if os.path.basename(script) in ("d2_ext", "__main__.py") else ["python", script]
    return " ".join(shlex.join([*program, *arguments]).split())
