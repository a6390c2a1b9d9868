"""What heads on sparse towers share: a class and a box tower, each with its own mask.

Paper: CEASC (arXiv:2303.14488). Letters: N images, L levels, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.layers.sparse.conv import convolve_to_few
from d2_ext.layers.sparse.gumbel import draw_uniform_pair, hard_mask
from d2_ext.layers.sparse.tower import ContextSparseTower, TowerOutput

import torch
from torch import Tensor, nn

BRANCHES = ("cls", "reg")
MaskNoise = dict[str, list[tuple[Tensor, Tensor]]]


class MaskedBranches(nn.Module):
    """Masks of the towers ``cls_tower`` and ``reg_tower``, which subclasses make."""

    cls_tower: ContextSparseTower
    reg_tower: ContextSparseTower

    def towers(self) -> dict[str, ContextSparseTower]:
        """Both towers by branch."""
        return {"cls": self.cls_tower, "reg": self.reg_tower}

    def masks(self, features: Sequence[Tensor], noise: MaskNoise | None = None) -> dict[str, list[Tensor]]:
        """Masks of both branches for L maps (N, C, H, W).

        Args:
            features: the maps.
            noise: for training, by branch a pair of U[0, 1) tensors (N, 1, H, W) per level; drawn if None.
        """
        if not self.training:
            return {branch: [m.float() for m in masks] for branch, masks in self.hard_masks(features).items()}
        masks: dict[str, list[Tensor]] = {branch: [] for branch in BRANCHES}
        for level, x in enumerate(features):
            for branch, tower in self.towers().items():
                # Level by level, cls before reg: the order of the released code, so that equal seeds give equal noise.
                uniform = noise[branch][level] if noise else draw_uniform_pair(x[:, :1])
                masks[branch].append(tower.mask(x, uniform))
        return masks

    @torch.no_grad()
    def hard_masks(self, features: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Masks of inference, in whatever mode the head is: by branch L maps, bool (N, 1, H, W)."""
        convs = [tower.mask_conv for tower in self.towers().values()]
        masks = [hard_mask(convolve_to_few(x, convs)).bool() for x in features]
        return {branch: [m[:, i : i + 1] for m in masks] for i, branch in enumerate(self.towers())}


def mean_norm_loss(*towers: TowerOutput) -> Tensor | None:
    """Norm loss over branches, levels and layers; None in inference."""
    losses = [tower.norm_loss for tower in towers if tower.norm_loss is not None]
    return torch.stack(losses).mean() if losses else None
