"""Context-enhanced sparse tower: masked convolutions that see the whole image through a point-wise map.

Paper: CEASC (arXiv:2303.14488), section on context-enhanced sparse convolution (CESC).
Checked against: the authors' released code at commit 2abfd1a.

For features x of one map, with mask h (0 or 1 per position) and point-wise convolution G = W x:

    f_0 = x
    f_j = ReLU( h * CE-GN_j(conv_j(f_{j-1}); statistics of G) + G )      j = 1 .. number of layers
    out = h * predict(f_last) + (1 - h) * base

So an inactive position holds ReLU(G) after *every* layer, never 0: G is what a 3x3 kernel sees of the inactive
surroundings. The sparse path lives on this: one table of rows holds ReLU(G) around the active positions of all maps and
images, each layer overwrites its active rows, and nothing else is ever touched. The neighbour table is made once and
serves all layers; G itself exists only in pieces that fit into the cache, from which its statistics are taken.

Training computes the dense form, which is the definition; inference computes the active rows, except on levels that
are nearly full. Both give a ``TowerOutput``. The module knows nothing of detection: any head can be built on it (see
``modeling/heads``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.context_norm import ContextGroupNorm, at_least_float32
from d2_ext.layers.sparse.conv import convolve_to_few, dense_masked_conv
from d2_ext.layers.sparse.gumbel import draw_uniform_pair, hard_mask, sample_mask
from d2_ext.layers.sparse.inference import predict_active_rows
from d2_ext.layers.sparse.linear import to_channels_last
from d2_ext.layers.sparse.rows import RowLayout, RowValues

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_LOSS_TARGETS = ("group_norm", "conv")


@dataclass(frozen=True)
class TowerOutput:
    """What a tower gives for L maps.

    Attributes:
        predictions: by name of the prediction layer.
        masks: L masks (N, 1, H, W) of 0 and 1, float32; in training they carry a gradient.
        norm_loss: (L,) mean over the layers of the squared distance to the dense layer; None in inference.
    """

    predictions: dict[str, RowValues]
    masks: list[Tensor]
    norm_loss: Tensor | None


class ContextLayer(nn.Module):
    """3x3 convolution and CE-GN of one tower layer."""

    def __init__(self, channels: int, *, norm_groups: int, unbiased: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = ContextGroupNorm(num_channels=channels, num_groups=norm_groups, unbiased=unbiased)


class ContextSparseTower(nn.Module):
    """Mask convolution, point-wise convolution, masked layers and masked prediction layers.

    All convolutions start from N(0, 0.01) with bias 0, except the mask and the point-wise convolution, which keep
    PyTorch's default: G must not start near 0, and about half of all positions start active under noise.

    Args:
        channels: C of the input and of all layers (the residual G needs them equal).
        num_layers: masked 3x3 layers.
        outputs: channels of each prediction layer, by name.
        bases: value of each prediction at inactive positions, by name; 0 where it has none.
        norm_groups: groups of CE-GN, a divisor of ``channels``.
        unbiased_variance: see ``group_statistics``.
        temperature: tau of the mask's relaxation in training.
        norm_loss_target: what the norm loss pulls the masked CE-GN output towards: ``"group_norm"`` is ordinary group
            normalisation of the same dense convolution (the released code), ``"conv"`` the dense convolution itself
            (the paper's formula).

    Raises:
        ConfigError: for values that cannot work.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_layers: int,
        outputs: Mapping[str, int],
        bases: Mapping[str, float] | None = None,
        norm_groups: int = 32,
        unbiased_variance: bool = True,
        temperature: float = 1.0,
        norm_loss_target: str = "group_norm",
    ) -> None:
        super().__init__()
        if norm_loss_target not in NORM_LOSS_TARGETS:
            raise ConfigError(f"norm_loss_target {norm_loss_target!r} is not one of {', '.join(NORM_LOSS_TARGETS)}.")
        if num_layers < 1:
            raise ConfigError(f"A sparse tower needs at least one layer, not {num_layers}.")
        if temperature <= 0:
            raise ConfigError(f"The temperature of the mask must be positive, not {temperature}.")
        self.bases = {name: float((bases or {}).get(name, 0.0)) for name in outputs}
        self.temperature = temperature
        self.norm_loss_target = norm_loss_target
        self.mask_conv = nn.Conv2d(channels, 1, 3, padding=1)
        self.context_conv = nn.Conv2d(channels, channels, 1)
        self.layers = nn.ModuleList(
            ContextLayer(channels, norm_groups=norm_groups, unbiased=unbiased_variance) for _ in range(num_layers)
        )
        self.predictors = nn.ModuleDict({name: nn.Conv2d(channels, c, 3, padding=1) for name, c in outputs.items()})
        for conv in (*(layer.conv for layer in self.layers), *self.predictors.values()):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        to_channels_last(self)

    def mask(self, x: Tensor, uniform: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Mask of one map: sampled in training, the sign of the logit in inference.

        Args:
            x: (N, C, H, W).
            uniform: noise for training, see ``sample_mask``; drawn here if None.

        Returns:
            (N, 1, H, W), 0 or 1, float32.
        """
        if not self.training:
            return self.hard_mask(x)
        logits = self.mask_conv(x).float()
        return sample_mask(logits, uniform or draw_uniform_pair(logits), self.temperature)

    @torch.no_grad()
    def hard_mask(self, x: Tensor) -> Tensor:
        """Mask of inference of one map (N, C, H, W), in whatever mode the tower is: (N, 1, H, W), 0 or 1, float32."""
        return hard_mask(convolve_to_few(x, [self.mask_conv]))

    def forward(
        self, maps: Sequence[Tensor], masks: Sequence[Tensor], needed: Sequence[Tensor] | None = None
    ) -> TowerOutput:
        """Compute the predictions: densely in training, at the active positions only and without gradient otherwise.

        Args:
            maps: L maps (N, C, H, W); N may differ from map to map.
            masks: their masks (N, 1, H, W), from ``mask``.
            needed: masks of the positions whose predictions will be looked at; None: all. Inference may leave the
                others at the base value.
        """
        return self.forward_dense(maps, masks) if self.training else self.forward_sparse(maps, masks, needed)

    def forward_dense(self, maps: Sequence[Tensor], masks: Sequence[Tensor]) -> TowerOutput:
        """Compute every position: the definition, differentiable in everything."""
        layout = RowLayout.of(maps)
        predictions: dict[str, list[Tensor]] = {name: [] for name in self.predictors}
        norm_losses = []
        for x, mask in zip(maps, masks):
            features, norm_loss = self._dense_layers(x, mask)
            norm_losses.append(norm_loss)
            for name, conv in self.predictors.items():
                predictions[name].append(dense_masked_conv(features, conv, mask, self.bases[name]))
        rows = {k: RowValues(layout.flatten(v), None, self.bases[k], layout) for k, v in predictions.items()}
        return TowerOutput(rows, list(masks), torch.stack(norm_losses))

    def _dense_layers(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Run the masked layers over one map; give the features and the mean norm loss of the layers."""
        context = self.context_conv(x)
        statistics = self.layers[0].norm.statistics(context.flatten(2).transpose(1, 2))
        losses = []
        for layer in self.layers:
            y = layer.conv(x)
            z = layer.norm(y, statistics) * mask
            losses.append(F.mse_loss(z, self._norm_target(layer, y, mask)))
            x = F.relu(z + context).to(context.dtype)
        return x, torch.stack(losses).mean()

    @torch.no_grad()
    def _norm_target(self, layer: ContextLayer, y: Tensor, mask: Tensor) -> Tensor:
        return mask * (layer.norm.ordinary(y) if self.norm_loss_target == "group_norm" else at_least_float32(y))

    @torch.no_grad()
    def forward_sparse(
        self, maps: Sequence[Tensor], masks: Sequence[Tensor], needed: Sequence[Tensor] | None = None
    ) -> TowerOutput:
        """Compute what is needed only; the same numbers as ``forward_dense``, to rounding. See ``forward``."""
        layout = RowLayout.of(maps)
        index, values = predict_active_rows(self, maps, masks, needed)
        predictions = {k: RowValues(v, index, self.bases[k], layout) for k, v in values.items()}
        return TowerOutput(predictions, list(masks), None)
