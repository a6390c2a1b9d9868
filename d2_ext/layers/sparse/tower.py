"""Context-enhanced sparse tower: masked convolutions that see the whole image through a point-wise map.

Paper: CEASC (arXiv:2303.14488), section on context-enhanced sparse convolution (CESC).
Checked against: the authors' released code at commit 2abfd1a.

For features x of one map, with mask h (0 or 1 per position) and point-wise convolution G = W x:

    f_0 = x
    f_j = ReLU( h * norm_j(conv_j(f_{j-1})) + G )      j = 1 .. number of layers
    out = h * predict(f_last) + (1 - h) * base

The paper's norm is CE-GN, with the statistics of G; the other one is layer normalization of each position, ours.
So an inactive position holds ReLU(G) after *every* layer, never 0: G is what a 3x3 kernel sees of the inactive
surroundings. The sparse path lives on this: one table of rows holds ReLU(G) around the active positions of all maps and
images, each layer overwrites its active rows, and nothing else is ever touched. The neighbor table is made once and
serves all layers; G itself exists only in pieces that fit into the cache, from which its statistics are taken.

Training computes the dense form, which is the definition; inference computes the active rows, except on levels that
are nearly full. Both give a ``TowerOutput``. The module knows nothing of detection: any head can be built on it (see
``modeling/heads/sparse.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from d2_ext.errors import ConfigError, check_choice
from d2_ext.layers.sparse.context_norm import ContextGroupNorm, at_least_float32
from d2_ext.layers.sparse.conv import convolve_to_few, dense_masked_conv
from d2_ext.layers.sparse.gumbel import Mask, draw_uniform_pair, hard_mask, sample_mask
from d2_ext.layers.sparse.inference import MapMoments, TowerWeights, moments_of, predict_active_rows
from d2_ext.layers.sparse.layer import ContextLayer, TowerNorm
from d2_ext.layers.sparse.linear import to_channels_last
from d2_ext.layers.sparse.position_norm import PositionNorm
from d2_ext.layers.sparse.rows import RowLayout, RowValues

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOWER_NORMS = ("CE-GN", "LN")
NORM_LOSS_TARGETS = ("group_norm", "conv")


@dataclass(frozen=True)
class SparseTowerConfig:
    """What all sparse towers of a model have in common.

    Attributes:
        norm: of the layers: ``"CE-GN"``, group normalization by the statistics of G (the paper), or ``"LN"``, layer
            normalization of each position, which has no norm loss.
        norm_groups: groups of CE-GN, a divisor of the tower's channels.
        unbiased_variance: see ``group_statistics``.
        temperature: tau of the mask's relaxation in training.
        norm_loss_target: what the norm loss pulls the masked CE-GN output towards: ``"group_norm"`` is ordinary group
            normalization of the same dense convolution (the released code), ``"conv"`` the dense convolution itself
            (the paper's formula).
        open_in_training: training computes every position, and the masks learn beside the towers, from features that
            they do not change. False, the paper: they close positions in training, too, with noise.
        mask_channels: of what the mask convolutions read, which the head makes; 0: they read the features themselves.

    Raises:
        ConfigError: for values that cannot work.
    """

    norm: str = "CE-GN"
    norm_groups: int = 32
    unbiased_variance: bool = True
    temperature: float = 1.0
    norm_loss_target: str = "group_norm"
    open_in_training: bool = False
    mask_channels: int = 0

    def __post_init__(self) -> None:
        check_choice("MODEL.CEASC.NORM", self.norm, TOWER_NORMS)
        check_choice("MODEL.CEASC.NORM_LOSS_TARGET", self.norm_loss_target, NORM_LOSS_TARGETS)
        if self.temperature <= 0:
            raise ConfigError(f"The temperature of the mask must be positive, not {self.temperature}.")

    def make_norm(self, channels: int) -> TowerNorm:
        """A layer's norm for C channels."""
        if self.norm == "LN":
            return PositionNorm(channels)
        return ContextGroupNorm(num_channels=channels, num_groups=self.norm_groups, unbiased=self.unbiased_variance)


@dataclass(frozen=True)
class TowerOutput:
    """What a tower gives for L maps.

    Attributes:
        predictions: by name of the prediction layer.
        masks: of the L maps, as they were given.
        norm_loss: (L,) mean over the layers of the squared distance to the dense layer; None in inference, and without
            CE-GN.
    """

    predictions: dict[str, RowValues]
    masks: list[Mask]
    norm_loss: Tensor | None


class ContextSparseTower(nn.Module):
    """Mask convolution, point-wise convolution, masked layers and masked prediction layers.

    All convolutions start from N(0, 0.01) with bias 0, except the mask and the point-wise convolution, which keep
    PyTorch's default: G must not start near 0, and about half of all positions start active under noise.

    Args:
        channels: C of the input and of all layers (the residual G needs them equal).
        num_layers: masked 3x3 layers.
        outputs: channels of each prediction layer, by name.
        bases: value of each prediction at inactive positions, by name; 0 where it has none.
        config: what towers of a model share.

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
        config: SparseTowerConfig | None = None,
    ) -> None:
        super().__init__()
        config = config or SparseTowerConfig()
        if num_layers < 1:
            raise ConfigError(f"A sparse tower needs at least one layer, not {num_layers}.")
        self.bases = {name: float((bases or {}).get(name, 0.0)) for name in outputs}
        self.temperature = config.temperature
        self.norm_loss_target = config.norm_loss_target
        self.open_in_training = config.open_in_training
        self.mask_conv = nn.Conv2d(config.mask_channels or channels, 1, 3, padding=1)
        self.context_conv = nn.Conv2d(channels, channels, 1)
        self.layers = nn.ModuleList(ContextLayer(channels, config.make_norm(channels)) for _ in range(num_layers))
        self.predictors = nn.ModuleDict({name: nn.Conv2d(channels, c, 3, padding=1) for name, c in outputs.items()})
        for conv in (*(layer.conv for layer in self.layers), *self.predictors.values()):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        to_channels_last(self)

    @property
    def reads_moments(self) -> bool:
        """Whether inference asks for the moments of the maps: CE-GN does."""
        return self.layers[0].norm.reads_context

    def mask(self, x: Tensor, uniform: tuple[Tensor, Tensor] | None = None) -> Mask:
        """Mask of one map (N, C, H, W): sampled in training, the sign of the logit in inference.

        Args:
            x: what the mask convolution reads.
            uniform: noise for training, see ``sample_mask``; drawn here if None.
        """
        if not self.training:
            with torch.no_grad():
                logits = convolve_to_few(x, [self.mask_conv]).float()
            return Mask(hard_mask(logits), logits)
        logits = self.mask_conv(x).float()
        return Mask(sample_mask(logits, uniform or draw_uniform_pair(logits), self.temperature), logits)

    def forward(
        self,
        maps: Sequence[Tensor],
        masks: Sequence[Mask],
        needed: Sequence[Mask] | None = None,
        moments: Sequence[MapMoments] | None = None,
    ) -> TowerOutput:
        """Compute the predictions: densely in training, at the active positions only and without gradient otherwise.

        Args:
            maps: L maps (N, C, H, W); N may differ from map to map.
            masks: one for each map, from :meth:`mask`.
            needed: the positions whose predictions will be looked at; None: all. Inference may leave the others at the
                base value.
            moments: of the maps, see ``moments_of``; taken here if None. Training does not ask for them.
        """
        if not self.training:
            return self.forward_sparse(maps, masks, needed, moments)
        if self.open_in_training:
            masks = [Mask(torch.ones_like(mask.active), mask.logits) for mask in masks]
        return self.forward_dense(maps, masks)

    def forward_dense(self, maps: Sequence[Tensor], masks: Sequence[Mask]) -> TowerOutput:
        """Compute every position: the definition, differentiable in everything."""
        layout = RowLayout.of(maps)
        predictions: dict[str, list[Tensor]] = {name: [] for name in self.predictors}
        norm_losses = []
        for x, mask in zip(maps, masks):
            context = self.context_conv(x)
            statistics = self.layers[0].norm.statistics(context.flatten(2).transpose(1, 2))
            distances = []
            for layer in self.layers:
                y = layer.conv(x)
                z = layer.norm(y, statistics) * mask.active
                if isinstance(layer.norm, ContextGroupNorm):
                    distances.append(F.mse_loss(z, self._norm_target(layer, y, mask.active)))
                x = F.relu(z + context).to(context.dtype)
            if distances:
                norm_losses.append(torch.stack(distances).mean())
            for name, conv in self.predictors.items():
                predictions[name].append(dense_masked_conv(x, conv, mask.active, self.bases[name]))
        rows = {k: RowValues(layout.flatten(v), None, self.bases[k], layout) for k, v in predictions.items()}
        return TowerOutput(rows, list(masks), torch.stack(norm_losses) if norm_losses else None)

    @torch.no_grad()
    def _norm_target(self, layer: ContextLayer, y: Tensor, active: Tensor) -> Tensor:
        return active * (layer.norm.ordinary(y) if self.norm_loss_target == "group_norm" else at_least_float32(y))

    @torch.no_grad()
    def forward_sparse(
        self,
        maps: Sequence[Tensor],
        masks: Sequence[Mask],
        needed: Sequence[Mask] | None = None,
        moments: Sequence[MapMoments] | None = None,
    ) -> TowerOutput:
        """Compute what is needed only; the same numbers as ``forward_dense``, to rounding. See ``forward``."""
        weights = TowerWeights(self.context_conv, list(self.layers), dict(self.predictors.items()))
        wanted = None if needed is None else [mask.active for mask in needed]
        if moments is None and self.reads_moments:
            moments = moments_of(maps)
        index, values = predict_active_rows(weights, maps, [mask.active for mask in masks], wanted, moments)
        layout = RowLayout.of(maps)
        predictions = {k: RowValues(v, index, self.bases[k], layout) for k, v in values.items()}
        return TowerOutput(predictions, list(masks), None)
