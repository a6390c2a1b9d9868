"""Fold batch norms into the convolutions before them, for faster inference with the same results.

A norm with fixed statistics is y = s * x + t per channel, so conv-then-norm is one convolution with weight s * w and
bias s * b + t. The folded values are computed in float64.
"""

from __future__ import annotations

import copy
import logging
from itertools import pairwise

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

logger = logging.getLogger(__name__)


def fold_norms(model: nn.Module, *, channels_last: bool = True) -> nn.Module:
    """Copy a model for inference and fold its batch norms, frozen or not, into the convolutions before them.

    Folded are the norm inside Detectron2's ``Conv2d``, a norm right behind a convolution in an ``nn.Sequential``, and
    the pairs that a module names in ``foldable = (("conv", "norm"), ...)``. Other norms (GroupNorm, norms that do not
    follow a convolution) stay.

    Args:
        model: left as it is.
        channels_last: store the weights in the layout in which convolutions need no conversions; results have it too.

    Returns:
        The copy, in evaluation mode. Its parameters have other names and values: save the original, not the copy.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)).eval()
        >>> fold_norms(net)
        Sequential(
          (0): Conv2d(3, 4, kernel_size=(1, 1), stride=(1, 1))
          (1): Identity()
        )
    """
    model = copy.deepcopy(model).eval()
    folded = 0
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d) and _has_fixed_statistics(getattr(module, "norm", None)):
            _fold(module, module.norm)
            module.norm = None
            folded += 1
        # Names of children where the second is a norm that gets the output of the first, a convolution, and only it.
        pairs = []
        if isinstance(module, nn.Sequential):
            for (first, child), (second, _) in pairwise(module._modules.items()):
                # Nothing, such as an activation of Detectron2's ``Conv2d``, comes between.
                plain = getattr(child, "norm", None) is None and getattr(child, "activation", None) is None
                if isinstance(child, nn.Conv2d) and plain:
                    pairs.append((first, second))
        for conv, norm in [*pairs, *getattr(module, "foldable", ())]:
            if _has_fixed_statistics(getattr(module, norm)):
                _fold(getattr(module, conv), getattr(module, norm))
                setattr(module, norm, nn.Identity())
                folded += 1
    logger.info("Folded %d norms into their convolutions.", folded)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def _has_fixed_statistics(norm: nn.Module | None) -> bool:
    return isinstance(norm, (FrozenBatchNorm2d, _BatchNorm)) and norm.running_mean is not None


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    def values(tensor: Tensor | None, default: float = 0.0) -> Tensor:
        tensor = torch.full_like(norm.running_mean, default) if tensor is None else tensor
        return tensor.cpu().double()  # Apple's GPUs have no float64

    scale = values(norm.weight, 1.0) * (values(norm.running_var) + norm.eps).rsqrt()
    bias = values(norm.bias) + (values(conv.bias) - values(norm.running_mean)) * scale
    weight = values(conv.weight) * scale.reshape(-1, 1, 1, 1)
    weight, bias = (x.to(conv.weight.dtype).to(conv.weight.device) for x in (weight, bias))
    conv.weight, conv.bias = (nn.Parameter(x, requires_grad=False) for x in (weight, bias))
