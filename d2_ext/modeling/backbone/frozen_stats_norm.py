"""BatchNorm with frozen statistics and a trainable scale and offset.

Between Detectron2's ``FrozenBN`` (nothing is trained) and ``BN`` (statistics follow the batch): what mmdet calls
``norm_eval``. Small batches cannot disturb the statistics of the pre-training, but the affine part still adapts.
"""

from __future__ import annotations

from torch import Tensor, nn

NAME = "FrozenStatsBN"


class FrozenStatsBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that stays in evaluation mode whatever ``train`` says; same keys in a checkpoint."""

    def train(self, mode: bool = True) -> FrozenStatsBatchNorm2d:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, H, W) by the stored statistics."""
        self.training = False  # a fresh module starts in training mode, without a call of train()
        return super().forward(x)


def freeze_statistics(module: nn.Module) -> nn.Module:
    """Replace each BatchNorm2d below a module by one with frozen statistics, which shares its tensors.

    Args:
        module: changed in place, unless it is a BatchNorm2d itself.

    Returns:
        The module, or its replacement. FrozenBN layers, which are no BatchNorm2d, stay as they are.
    """
    if isinstance(module, FrozenStatsBatchNorm2d):
        return module
    if isinstance(module, nn.BatchNorm2d):
        frozen = FrozenStatsBatchNorm2d(module.num_features, eps=module.eps, momentum=module.momentum)
        frozen._parameters.update(module._parameters)
        frozen._buffers.update(module._buffers)
        return frozen.train()
    for name, child in module.named_children():
        setattr(module, name, freeze_statistics(child))
    return module
