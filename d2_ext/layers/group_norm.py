"""Group normalization of maps of any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AnySizeGroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` that accepts a single map of one position: the coarsest level of a small image.

    PyTorch's refuses it, meant for the case that each group has a single element; with several channels a group the
    statistics are well defined, and with one the variance is 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W)."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
