"""3D max filtering: each location keeps what is a maximum in space and over neighboring pyramid levels.

Paper: End-to-End Object Detection with Fully Convolutional Network, arXiv:2012.03544, section 3.3.
Checked against: the outputs of the paper's code for tau 0, 2, 4 and kernels 1, 3, 5, also with odd map sizes.

Letters: L levels, N images, C channels, Hl Wl rows and columns of level l.
"""

from __future__ import annotations

from d2_ext.errors import ConfigError

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn import functional as F


class MaxFilter3d(nn.Module):
    """Convolution, max over a (tau + 1, kernel, kernel) neighborhood, residual, norm, ReLU.

    The weights are shared by all levels. The pooling sees -inf beyond the borders and beyond the first and last level.

    Args:
        channels: of input and output.
        kernel_size: of the pooling in the plane (phi in the paper), odd.
        tau: how many neighboring levels are pooled, half of them on each side; even.
        norm: after the residual; "" for none.

    Raises:
        ConfigError: an even kernel or an odd tau, which have no center.
    """

    def __init__(self, channels: int, *, kernel_size: int = 3, tau: int = 2, norm: str = "GN") -> None:
        super().__init__()
        if kernel_size % 2 == 0 or tau % 2 == 1:
            raise ConfigError(
                f"MODEL.DEFCN.FILTER: KERNEL_SIZE {kernel_size} must be odd and TAU {tau} even, so that the "
                "neighborhood has a center; the paper uses 3 and 2."
            )
        self.reach = tau // 2
        self.kernel_size = kernel_size
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        nn.init.normal_(self.conv.weight, std=0.01)
        nn.init.zeros_(self.conv.bias)
        self.norm = get_norm(norm, channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Filter all levels together.

        Args:
            features: L maps (N, C, Hl, Wl), finest first.

        Returns:
            L maps of the same shapes.
        """
        # A CPU pools and resizes whole channel vectors in channels-last order, and single numbers otherwise: max
        # pooling of (2, 256, 60, 80) takes a twelfth of the time.
        if features[0].device.type == "cpu":
            features = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
        filtered = [self.conv(feature) for feature in features]
        outputs = []
        for level, feature in enumerate(features):
            pooled = self._pool_neighbors(filtered, level)
            out = feature + pooled  # the module's input, not the convolved map
            outputs.append(F.relu(out if self.norm is None else self.norm(out)))
        return outputs

    def _pool_neighbors(self, filtered: list[Tensor], level: int) -> Tensor:
        """Max over the neighborhood of every location of one level, (N, C, Hl, Wl)."""
        size = filtered[level].shape[-2:]
        best = filtered[level]
        for other in range(max(level - self.reach, 0), min(level + self.reach + 1, len(filtered))):
            if other != level:
                resized = F.interpolate(filtered[other], size=size, mode="bilinear", align_corners=False)
                best = torch.maximum(best, resized)
        # The maximum over a box is the maximum over its depth, then over its plane: no 3D pooling is needed.
        return F.max_pool2d(best, self.kernel_size, stride=1, padding=self.kernel_size // 2)
