"""Published weights in, weights under our names out, with a report of what fits the model.

Each source is one function of (tensors, cfg) in a module of its own; ``SOURCES`` lists them. Functions rename, and pass
on what they do not know: what the model cannot use ends up in the report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from d2_ext.checkpoint.ceasc import convert_ceasc_mmdet
from d2_ext.checkpoint.defcn import convert_defcn
from d2_ext.checkpoint.detnet import convert_detnet
from d2_ext.checkpoint.fcos import convert_adelaidet, convert_fcos
from d2_ext.checkpoint.fit import places
from d2_ext.checkpoint.moganet import convert_moganet
from d2_ext.checkpoint.torchvision import convert_torchvision
from d2_ext.checkpoint.vovnet import convert_vovnet, convert_vovnet_timm
from d2_ext.errors import CheckpointError, did_you_mean

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
        convert: function of (tensors, cfg or None) that returns the tensors under our names.
        needs_cfg: the names or their meaning depend on the config.
        head: starts of the names, under ours and under theirs, of a whole detector's head; a file whose head does not
            fit the model is refused.
    """

    convert: Callable[[dict[str, Tensor], CfgNode | None], Mapping[str, Tensor]]
    needs_cfg: bool = False
    head: tuple[str, ...] = ()


def convert_own(tensors: dict[str, Tensor], cfg: CfgNode | None) -> dict[str, Tensor]:
    """Weights of a training of this project, which have their names already.

    Raises:
        CheckpointError: no name begins as those of our detectors do.
    """
    if not any(name.startswith(("backbone.", "head.")) for name in tensors):
        raise CheckpointError(
            f"Names of this file look like {next(iter(tensors), 'nothing')}, which is no detector of d2_ext. Expected "
            "names such as backbone.fpn_lateral2.weight or head.cls_tower.layers.0.weight."
        )
    return tensors


SOURCES: dict[str, Source] = {
    "d2_ext": Source(convert_own, head=("head.",)),
    "vovnet": Source(convert_vovnet),
    "vovnet-timm": Source(convert_vovnet_timm),
    "detnet": Source(convert_detnet),
    "moganet": Source(convert_moganet),
    "torchvision": Source(convert_torchvision),
    "ceasc-mmdet": Source(convert_ceasc_mmdet, head=("bbox_head.", "head.")),
    "fcos": Source(convert_fcos, needs_cfg=True, head=("head.",)),
    "adelaidet": Source(convert_adelaidet, needs_cfg=True, head=("head.",)),
    "defcn": Source(convert_defcn, needs_cfg=True, head=("head.",)),
}

WRAPPERS = ("model", "state_dict", "state_dict_ema")  # keys under which trainers store the weights, best first
TRUNK_PREFIXES = ("", "backbone.bottom_up.", "backbone.")  # where a trunk's names may lie in a detector
HARMLESS = ("num_batches_tracked", "pixel_mean", "pixel_std")  # counters and constants, not weights


@dataclass
class ConversionReport:
    """What became of a checkpoint.

    Attributes:
        source: name of the source.
        matched: our names of the tensors to load; without a config, of all tensors.
        missing: weights of the model that the file has not.
        unexpected: weights of the file, under our names, that the model has not; they are left out.
        misshaped: names of weights whose shapes differ, with the file's and the model's; they are left out.
        compared: whether there was a config; without one the last three are empty.
    """

    source: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    compared: bool = False

    def summary(self) -> str:
        """Some lines for people: counts, and where in the model the gaps are."""
        if not self.compared:
            return f"{self.source}: {len(self.matched)} tensors, not compared with a model (give a config to do so)"
        lines = [f"{self.source}: {len(self.matched)} tensors fit the model"]
        for title, names in (("missing", self.missing), ("unexpected", self.unexpected)):
            lines.append(f"{title}: {len(names)}" + (f" ({places(names, 6)})" if names else ""))
        lines += [
            f"wrong shape: {name}, {ours} in the file, {theirs} in the model"
            for name, (ours, theirs) in self.misshaped.items()
        ]
        return "\n".join(lines)


class Conversion(dict[str, Tensor]):
    """A state dict under our names; ``report`` tells what became of the file."""

    def __init__(self, tensors: Mapping[str, Tensor], report: ConversionReport) -> None:
        super().__init__(tensors)
        self.report = report


def convert(
    state_dict: Mapping[str, Any], *, source: str, cfg: CfgNode | None = None, drop_head: bool = False
) -> Conversion:
    """Rename published weights.

    Args:
        state_dict: what the file holds: tensors or arrays by name, or a wrapper such as ``{"model": ...}``; names may
            start with ``module.``.
        source: one of ``SOURCES``.
        cfg: config of the model that is to load them. With it, names fit ``build_model(cfg)``, tensors that the model
            cannot use are left out, and the report compares both. Without it, weights of a trunk get the names of the
            trunk alone (``VoVNet(...).load_state_dict``), those of a whole detector get the detector's names.
        drop_head: leave out weights of a detector's head that the model cannot use, e.g. to train other classes,
            instead of refusing the file.

    Returns:
        The weights, a dict that ``load_state_dict`` takes, with ``.report``.

    Raises:
        CheckpointError: for an unknown source, a file that is not of it, if nothing fits the model, or if weights of
            the head do not.

    Example:
        >>> import torch
        >>> convert({"module.conv1.weight": torch.zeros(64, 3, 7, 7)}, source="detnet").keys()
        dict_keys(['stem.conv1.weight'])
    """
    if source not in SOURCES:
        raise CheckpointError(f"No checkpoint source {source!r}. {did_you_mean(source, SOURCES)}")
    if SOURCES[source].needs_cfg and cfg is None:
        raise CheckpointError(f"Weights of source {source!r} cannot be converted without a config: pass cfg=...")
    tensors = SOURCES[source].convert(_unwrapped(state_dict), cfg)
    if cfg is None:
        result = Conversion(tensors, ConversionReport(source, matched=list(tensors)))
    else:
        result = _fitted(tensors, source, cfg)
        report = result.report
        # Without a part of its head a detector would load, and detect nothing of use.
        lost = [k for k in (*report.unexpected, *report.misshaped) if k.startswith(SOURCES[source].head or ())]
        if lost and not drop_head:
            raise CheckpointError(
                f"{len(lost)} weights of the head in this {source} file do not fit the model: {', '.join(lost[:4])}"
                f"{', ...' if len(lost) > 4 else ''}. Check MODEL.META_ARCHITECTURE and the number of classes, or "
                f"leave them out on purpose with drop_head (--drop-head).\n{report.summary()}"
            )
    logger.info("Converted a checkpoint of %s", result.report.summary())
    return result


def _unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Find the tensors of a file, make arrays tensors, and take ``module.`` off their names.

    Counters of batches are left out: they are no weights, frozen norms refuse them, and trainable ones do without.
    """
    for wrapper in WRAPPERS:
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
            break
    tensors: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if not isinstance(value, Tensor) and not hasattr(value, "__array__"):
            raise CheckpointError(
                f"The checkpoint holds {type(value).__name__} under {key!r}, but a tensor was expected. Pass its state "
                f"dict, or a dict that holds it under {', '.join(map(repr, WRAPPERS))}."
            )
        while key.startswith("module."):
            key = key.removeprefix("module.")
        if not key.endswith("num_batches_tracked"):
            tensors[key] = value if isinstance(value, Tensor) else torch.as_tensor(value)
    return tensors


def _fitted(tensors: Mapping[str, Tensor], source: str, cfg: CfgNode) -> Conversion:
    """Put tensors under the names of the config's model and compare both."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = {key: tuple(value.shape) for key, value in build_model(cfg).state_dict().items()}
    prefix = max(TRUNK_PREFIXES, key=lambda p: sum(p + key in model for key in tensors))
    named = {prefix + key: value for key, value in tensors.items()}
    report = ConversionReport(source, compared=True)
    for key, value in named.items():
        if key not in model:
            report.unexpected.append(key)
        elif tuple(value.shape) != model[key]:
            report.misshaped[key] = (tuple(value.shape), model[key])
        else:
            report.matched.append(key)
    report.unexpected = [key for key in report.unexpected if not key.endswith(HARMLESS)]
    report.missing = [key for key in model if key not in named and not key.endswith(HARMLESS)]
    if not report.matched:
        raise CheckpointError(
            f"None of the {len(named)} tensors of this {source} checkpoint fits the model of the config. "
            f"In the file: {', '.join(list(tensors)[:3])}; in the model: {', '.join(list(model)[:3])}. "
            "Check MODEL.BACKBONE.NAME, the variant, and the source."
        )
    return Conversion({key: named[key] for key in report.matched}, report)
