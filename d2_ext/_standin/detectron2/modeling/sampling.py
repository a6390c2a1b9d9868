"""Random choice of training examples."""

from __future__ import annotations

import torch
from detectron2.layers import nonzero_tuple
from torch import Tensor

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Draw foreground up to a share of the samples, and fill up with background.

    Args:
        labels: (N,): -1 is ignored, ``bg_label`` background, all others foreground.
        num_samples: number to draw, of both together; fewer if there are not enough.
        positive_fraction: largest share of foreground, in [0, 1].
        bg_label: label of the background.

    Returns:
        Indices of the chosen foreground and of the chosen background.
    """
    positive = nonzero_tuple((labels != -1) & (labels != bg_label))[0]
    negative = nonzero_tuple(labels == bg_label)[0]
    num_positive = min(len(positive), int(num_samples * positive_fraction))
    num_negative = min(len(negative), num_samples - num_positive)
    return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(indices: Tensor, num: int) -> Tensor:
    return indices[torch.randperm(len(indices), device=indices.device)[:num]]
