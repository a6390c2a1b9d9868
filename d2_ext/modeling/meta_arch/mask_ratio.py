"""The losses of sparse towers, weighted and logged: what all detectors with such towers add to their own.

Paper: CEASC (arXiv:2303.14488). Letters: N images, L levels, A anchors a position, B branches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from d2_ext.modeling.losses.sparsity import active_ratios, positive_ratios, ratio_loss

import torch
from detectron2.utils.events import get_event_storage
from torch import Tensor


@dataclass(frozen=True)
class SparsityLosses:
    """Weights of the losses of sparse towers; see ``MODEL.CEASC``.

    Attributes:
        norm_weight: alpha, of the distance between sparse and dense layers.
        ratio_weight: beta, of the distance of the active share from its target.
        ratio_target: what the target counts, see ``positive_ratios``.
    """

    norm_weight: float = 10.0
    ratio_weight: float = 1.0
    ratio_target: str = "anchors"

    def __call__(
        self,
        masks: Mapping[str, Sequence[Tensor]],
        norm_loss: Tensor,
        positive: Sequence[Tensor],
        level_names: Sequence[str],
    ) -> dict[str, Tensor]:
        """Weighted losses of a batch; logs the active shares and their targets under ``mask_ratio/``.

        Args:
            masks: by branch L masks (N, 1, H, W) of 0 and 1.
            norm_loss: mean over levels, branches and layers.
            positive: L tensors, bool (N, H*W, A): which anchors are labelled positive.
            level_names: of the L levels, for the log.

        Returns:
            ``loss_norm`` and ``loss_ratio``.
        """
        targets = positive_ratios(positive, self.ratio_target)
        ratios = torch.stack([active_ratios(levels) for levels in masks.values()])  # (B, L)
        sizes = [p.shape[0] * p.shape[1] for p in positive]
        _log_ratios([*masks, "target"], torch.cat([ratios.detach(), targets[None]]), sizes, level_names)
        return {
            "loss_norm": self.norm_weight * norm_loss,
            "loss_ratio": self.ratio_weight * ratio_loss(ratios, targets),
        }


def _log_ratios(rows: Sequence[str], table: Tensor, sizes: Sequence[int], level_names: Sequence[str]) -> None:
    """Log each row (branch or target) of a table of shares (B + 1, L), by level and over all positions."""
    weights = torch.tensor(sizes, dtype=torch.float32)
    table = table.cpu()  # one transfer
    overall = (table * (weights / weights.sum())).sum(dim=1).tolist()
    scalars = {}
    for name, total, shares in zip(rows, overall, table.tolist()):
        scalars[f"mask_ratio/{name}"] = total
        scalars.update({f"mask_ratio/{level}_{name}": share for level, share in zip(level_names, shares)})
    get_event_storage().put_scalars(smoothing_hint=False, **scalars)
