"""Where masks meet objects: the losses of sparse towers, their log, and the masks for a user.

Paper: CEASC (arXiv:2303.14488). What a loss on the masks can be made of stands side by side in :class:`Sparsity`: per
branch and level the mask, the logits that it was made from, and the positions with an object.

Letters: N images, L levels, A anchors a position, R anchors of all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from d2_ext.errors import ConfigError, check_choice
from d2_ext.layers.sparse.rows import RowLayout
from d2_ext.layers.sparse.tower import SparseTowerConfig
from d2_ext.modeling.heads.base import SparseOutput
from d2_ext.modeling.heads.sparse import BRANCHES
from d2_ext.modeling.losses.sparsity import RATIO_TARGETS, active_ratios, mask_loss, positive_ratios, ratio_loss
from d2_ext.modeling.padding import run_in_groups

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

LevelMasks = dict[str, dict[str, Tensor]]
# Keys of MODEL.CEASC that only RetinaNet-CEASC reads, with their defaults.
RETINANET_KEYS = {
    "REG_BASE": 0.0,
    "LOSS_NORMALIZER": "local",
    "LOW_QUALITY_MATCHES": "reassign",
    "PRE_NMS_UNIT": "anchor",
}
# Keys that only CE-GN reads.
CE_GN_KEYS = {"NORM_GROUPS": 32, "UNBIASED_VARIANCE": True, "NORM_LOSS_WEIGHT": 10.0, "NORM_LOSS_TARGET": "group_norm"}


@dataclass(frozen=True)
class Sparsity:
    """The losses of sparse towers; see ``MODEL.CEASC``.

    Attributes:
        norm_weight: alpha, of the distance between sparse and dense layers.
        ratio_weight: beta, of the distance of the active share from its target.
        ratio_target: what the target counts, see ``positive_ratios``.
        mask_weight: gamma, of the loss that tells the masks where objects are; 0 for the paper's recipe.
        positive_weight: of the positions at objects in it, see ``mask_loss``.

    Raises:
        ConfigError: an unknown target.
    """

    norm_weight: float = 10.0
    ratio_weight: float = 1.0
    ratio_target: str = "anchors"
    mask_weight: float = 0.0
    positive_weight: float = 2.0

    def __post_init__(self) -> None:
        check_choice("MODEL.CEASC.RATIO_TARGET", self.ratio_target, RATIO_TARGETS)

    def losses(
        self, output: SparseOutput, layout: RowLayout, positive: Tensor, ignored: Tensor, level_names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Weighted losses of a batch, and the log of its masks.

        Logged are the active shares with their targets under ``mask_ratio/``, and under ``mask_recall/`` the share of
        the positions with an object that the masks of inference (without noise) would compute.

        Args:
            output: of the head in training.
            layout: of the L levels.
            positive: bool (N, R), which anchors the assigner gave an object; those of a level stand together,
                row-major, and those of a position are neighbors.
            ignored: bool (N, R), which anchors take no part.
            level_names: of the L levels, for the log.

        Returns:
            ``loss_ratio``; with CE-GN ``loss_norm``; with a ``mask_weight`` ``loss_mask``.
        """
        # 1. The objects of each level, position by position: L tensors (N, H*W, A), as the masks (N, 1, H, W) of
        #    output.masks[branch][level] have them.
        cells = [h * w for _, h, w in layout.shapes]
        anchors = positive.shape[1] // sum(cells)
        rows = [c * anchors for c in cells]
        objects = [p.unflatten(1, (-1, anchors)) for p in positive.split(rows, dim=1)]
        silent = [i.unflatten(1, (-1, anchors)).all(dim=2) for i in ignored.split(rows, dim=1)]
        # 2. The active share of each branch and level, and its target.
        ratios = torch.stack([active_ratios([mask.active for mask in masks]) for masks in output.masks.values()])
        targets = positive_ratios(objects, self.ratio_target)
        # 3. Both by level and over all positions go into the log, in one transfer.
        weights = torch.tensor([float(size) for size in layout.map_sizes])
        table = torch.cat([ratios.detach(), targets[None]]).cpu()
        overall = (table * (weights / weights.sum())).sum(dim=1).tolist()
        scalars = {}
        for name, total, shares in zip([*output.masks, "target"], overall, table.tolist()):
            scalars[f"mask_ratio/{name}"] = total
            scalars.update({f"mask_ratio/{level}_{name}": share for level, share in zip(level_names, shares)})
        storage = get_event_storage()
        storage.put_scalars(smoothing_hint=False, **scalars)
        # 4. Which positions with an object the masks let through.
        at_object = [o.any(dim=2) for o in objects]
        total = torch.stack([o.sum() for o in at_object]).tolist()
        logits = {
            name: [mask.logits.flatten(1) for mask in masks if mask.logits is not None]
            for name, masks in output.masks.items()
        }
        for name, levels in logits.items():
            kept = torch.stack([((x >= 0) & o).sum() for x, o in zip(levels, at_object)]).tolist()
            for level, k, n in [*zip(level_names, kept, total), ("", sum(kept), sum(total))]:
                if n:  # a level without objects has no recall
                    storage.put_scalar(f"mask_recall/{level}_{name}" if level else f"mask_recall/{name}", k / n)
        # 5. L = ... + alpha * L_norm + beta * L_amm + gamma * L_mask
        losses = {"loss_ratio": self.ratio_weight * ratio_loss(ratios, targets)}
        if output.norm_loss is not None:
            losses["loss_norm"] = self.norm_weight * output.norm_loss
        if self.mask_weight:
            # The neighbors of an object's positions, too: its 3x3 convolutions look at them.
            wanted = [
                F.max_pool2d(o.view(-1, 1, h, w).float(), 3, stride=1, padding=1).flatten(1) > 0
                for o, (_, h, w) in zip(at_object, layout.shapes)
            ]
            at = torch.cat([w.flatten() for w in wanted])
            counted = torch.cat([~s.flatten() for s in silent])
            each = [
                mask_loss(torch.cat([x.flatten() for x in levels]), at, counted, self.positive_weight)
                for levels in logits.values()
            ]
            losses["loss_mask"] = self.mask_weight * torch.stack(each).mean()
        return losses


@dataclass(frozen=True)
class SeenObjects:
    """What the masks of inference let through on one image.

    Attributes:
        assigned: bool (M,), which objects the assigner gives a position at all.
        seen: bool (M,), which of them have a position that is active in both branches.
        active: share of active positions of all levels, mean of both branches.
    """

    assigned: Tensor
    seen: Tensor
    active: float


@torch.no_grad()
def seen_objects(model: DenseDetector, features: list[Tensor], gt_instances: Sequence[Instances]) -> list[SeenObjects]:
    """Which objects the masks of inference let through: mask recall and active share, image by image.

    Args:
        model: a detector whose head is a ``SparseHead``, in evaluation mode.
        features: L maps (N, C, Hl, Wl).
        gt_instances: of the N images, in the frame of the network's input.
    """
    # 1. The masks of both branches, all levels of an image behind each other: (N, positions). The box numbers of
    #    inference are not enough for rules that look at all of them, so the head predicts once more.
    output = model.head(features)
    branches = output.sparsity.masks.values()
    cls, reg = (torch.cat([m.active.flatten(1) for m in masks], dim=1) > 0 for masks in branches)
    # 2. The positions of each object, as in training.
    instances = [each.to(model.device) for each in gt_instances]
    targets = model.find_targets(features, output, instances)
    both = (cls & reg).repeat_interleave(targets.objects.shape[1] // cls.shape[1], dim=1)  # of all anchors
    # 3. An object is seen if one of them is active in both.
    results = []
    for image, objects in enumerate(targets.objects):
        found = objects.new_zeros(2, int((instances[image].gt_classes >= 0).sum()), dtype=torch.bool)
        for row, rule in zip(found, (objects >= 0, (objects >= 0) & both[image])):
            row[objects[rule]] = True
        share = (cls[image].float().mean() + reg[image].float().mean()).item() / 2
        results.append(SeenObjects(found[0].cpu(), found[1].cpu(), share))
    return results


def read_sparsity(cfg: CfgNode) -> Sparsity:
    """The losses that ``MODEL.CEASC`` describes."""
    ceasc = cfg.MODEL.CEASC
    return Sparsity(
        norm_weight=ceasc.NORM_LOSS_WEIGHT,
        ratio_weight=ceasc.RATIO_LOSS_WEIGHT,
        ratio_target=ceasc.RATIO_TARGET,
        mask_weight=ceasc.MASK_LOSS_WEIGHT,
        positive_weight=ceasc.MASK_POSITIVE_WEIGHT,
    )


def read_towers(cfg: CfgNode, detector: str = "") -> dict[str, Any]:
    """The arguments of a ``SparseHead`` that ``MODEL.CEASC`` describes: ``cls_base`` and ``tower``.

    Args:
        cfg: the whole config.
        detector: name of a detector that does not read the keys of RetinaNet-CEASC; they must have their defaults.

    Raises:
        ConfigError: values that cannot work, or that would do nothing.
    """
    ceasc = cfg.MODEL.CEASC
    for key, default in RETINANET_KEYS.items():
        if detector and ceasc[key] != default:
            raise ConfigError(
                f"MODEL.CEASC.{key} is {ceasc[key]!r}, but only RetinaNetCEASC reads it; {detector} does not. Leave it "
                f"at {default!r}."
            )
    for key, default in CE_GN_KEYS.items():
        if ceasc.NORM == "LN" and ceasc[key] != default:
            raise ConfigError(
                f"MODEL.CEASC.{key} is {ceasc[key]!r}, but only CE-GN reads it, and MODEL.CEASC.NORM is 'LN'. Leave it "
                f"at {default!r}."
            )
    if ceasc.OPEN_IN_TRAINING and not ceasc.MASK_LOSS_WEIGHT:
        raise ConfigError(
            f"MODEL.CEASC.OPEN_IN_TRAINING needs a MASK_LOSS_WEIGHT above 0, not {ceasc.MASK_LOSS_WEIGHT}: nothing "
            "else tells such masks where objects are. Raise it (1.0 is the default), or set OPEN_IN_TRAINING False."
        )
    return {
        "cls_base": ceasc.CLS_BASE,
        "tower": SparseTowerConfig(
            norm=ceasc.NORM,
            norm_groups=ceasc.NORM_GROUPS,
            unbiased_variance=ceasc.UNBIASED_VARIANCE,
            temperature=ceasc.GUMBEL_TEMPERATURE,
            norm_loss_target=ceasc.NORM_LOSS_TARGET,
            open_in_training=ceasc.OPEN_IN_TRAINING,
            mask_channels=ceasc.MASK_CHANNELS,
        ),
    }


def refuse_options(key: str, wrong: dict[str, bool]) -> None:
    """Check that nothing is asked for that sparse towers cannot do.

    Args:
        key: the detector's part of the config.
        wrong: by option (with its value), whether it is in the way.

    Raises:
        ConfigError: naming those that are.
    """
    named = [option for option, is_wrong in wrong.items() if is_wrong]
    if named:
        raise ConfigError(
            f"{key}.SPARSE does not go together with {', '.join(named)}: sparse towers have the norm of MODEL.CEASC, "
            "predict distances in strides and hand no features on. Change these, or set SPARSE False."
        )


@torch.no_grad()
def activation_masks(model: DenseDetector, batched_inputs: list[dict[str, Any]]) -> list[LevelMasks]:
    """Masks of inference of a detector whose head is a ``SparseHead``, in whatever mode it is.

    Args:
        model: the detector.
        batched_inputs: dicts with ``image`` (3, H, W).

    Returns:
        Per image, by level name ("p3", ...) and branch ("cls", "reg"): bool (ceil(H / stride), ceil(W / stride)),
        True where the head computes.
    """

    def run(group: list[dict[str, Any]]) -> list[LevelMasks]:
        images = model.preprocess_image(group)
        masks = model.head.hard_masks(model.features(images.tensor))
        cropped: list[LevelMasks] = []
        for row, size in enumerate(images.image_sizes):  # without the padding of the group
            cropped.append({})
            for level, (name, stride) in enumerate(zip(model.head_in_features, model.strides)):
                height, width = (math.ceil(int(side) / stride) for side in size)
                cropped[-1][name] = {branch: masks[branch][level][row, 0, :height, :width] for branch in BRANCHES}
        return cropped

    return run_in_groups(model.backbone, batched_inputs, run)
