"""Does a file of weights fit the model? Detectron2 only logs what is missing, and goes on with random weights."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from d2_ext.errors import CheckpointError

from torch import nn

__all__ = ["check_fit", "places"]

logger = logging.getLogger(__name__)

# Buffers that are learned, or loaded in place of what is learned; others are constants and counters.
_LEARNED_BUFFERS = ("weight", "bias", "running_mean", "running_var")
_TRUNK = "backbone.bottom_up."


def check_fit(model: nn.Module, incompatible: Any, found: Collection[str], path: str, *, whole: bool) -> None:
    """Refuse weights that would leave a model, or most of its trunk, random.

    Args:
        model: after loading.
        incompatible: what fvcore's ``Checkpointer`` says of missing keys and wrong shapes.
        found: names in the file.
        path: of the file, for messages.
        whole: every weight must be in the file (evaluation, resuming). Otherwise weights of the head may be missing
            or of other shapes, as for another number of classes.

    Raises:
        CheckpointError: nothing fits; or ``whole`` and something does not; or less than half of the trunk does.
    """
    learned = [name for name, _ in model.named_parameters()]
    learned += [name for name, _ in model.named_buffers() if name.rpartition(".")[2] in _LEARNED_BUFFERS]
    wanted = {name.removeprefix("module.") for name in learned}
    misshaped = {name.removeprefix("module."): (a, b) for name, a, b in incompatible.incorrect_shapes}
    missing = {name.removeprefix("module.") for name in incompatible.missing_keys} - misshaped.keys()
    lost = wanted & (missing | misshaped.keys())
    if lost == wanted:
        starts = sorted({name.partition(".")[0] + "." for name in found if "." in name})
        extra = [s for s in starts if any(n.removeprefix(s) in wanted for n in found if n.startswith(s))]
        hint = f" Its names begin with {extra[0]!r}: take that off." if extra else ""
        raise CheckpointError(
            f"Checkpoint {path} does not fit the model: none of its {len(found)} names is one of the model's "
            f"{len(wanted)} weights.{hint} It has {_some(found)}; expected {_some(wanted)}. "
            "Check the config, or convert the file with tools/convert_checkpoint.py."
        )
    if whole and lost:
        wrong = [f"{n} is {tuple(a)} in the file, {tuple(b)} in the model" for n, (a, b) in misshaped.items()]
        absent = sorted(wanted & missing)
        parts = [f"{len(absent)} are missing ({places(absent, 3)})"] if absent else []
        shown = "; ".join(wrong[:2]) + ("; ..." if len(wrong) > 2 else "")
        parts += [f"{len(wrong)} have another shape ({shown})"] if wrong else []
        raise CheckpointError(
            f"Checkpoint {path} does not fit the model: of {len(wanted)} weights {' and '.join(parts)}. "
            "Check that the config, its number of classes too, is the one that the file was trained with."
        )
    if anew := sorted(lost & misshaped.keys()):
        logger.warning(
            "%d weights start anew, since those of %s have other shapes, as for another number of classes: %s",
            *(len(anew), path, ", ".join(anew)),
        )
    trunk = {name for name in wanted if name.startswith(_TRUNK)}
    if trunk and len(trunk & lost) > len(trunk) / 2 and trunk - lost:
        raise CheckpointError(
            f"Checkpoint {path} holds only {len(trunk - lost)} of the {len(trunk)} weights of {_TRUNK.rstrip('.')}; "
            f"missing: {_some(trunk & lost)}. The file is incomplete, or of another backbone. Get it again, or check "
            "the config."
        )


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:2]) + (", ..." if len(names) > 2 else "")


def places(names: Sequence[str], most: int) -> str:
    """Say in which parts of a model weights lie, e.g. ``"8 in head.cls_subnet, ..."``; at most so many parts."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    listed = ", ".join(f"{count} in {place}" for place, count in counts.most_common(most))
    return listed + (", ..." if len(counts) > most else "")
