"""Class-wise non-maximum suppression of a batch, as torch operators and as one operator that ONNX has.

Letters: N images, K classes, P candidate boxes of an image.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms


def suppress(boxes: Tensor, scores: Tensor, iou_thresh: float, limit: int) -> Tensor:
    """Set the scores of boxes to 0 that overlap a better one of their class and image.

    Args:
        boxes: (N, P, 4) XYXY px.
        scores: (N, K, P), 0 for no candidate.
        iou_thresh: boxes with a larger IoU are suppressed.
        limit: how many of each class and image will be looked at; more may be given.

    Returns:
        (N, K, P), the scores that stay, else 0.
    """
    classes, number = scores.shape[1], scores.shape[2]
    flat = scores.flatten()
    candidate = (flat > 0).nonzero()[:, 0]
    group = candidate // number  # of one image and class
    rows = boxes.flatten(0, 1)[group // classes * number + candidate % number].double()
    # Groups are moved apart, in float64, since far offsets would cost float32 its fractions of a px.
    span = 2 * torch.cat([rows.abs().flatten(), rows.new_ones(1)]).amax() + 1
    # Two boxes more, of no size, far from all and from each other, which therefore stay: torch.export takes it for
    # granted that what NMS keeps is more than one, and its program would end with an error where it is not.
    rows = torch.cat([rows + group[:, None] * span, -span * torch.tensor([[1.0], [2.0]]).to(rows).expand(-1, 4)])
    flat = torch.cat([flat, flat.new_zeros(2)])
    candidate = torch.cat([candidate, flat.shape[0] - 2 + torch.arange(2, device=flat.device)])
    kept = candidate[nms(rows, flat[candidate].double(), iou_thresh)]
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept])[:-2].view_as(scores)


def float32_at_most(value: float) -> float:
    """The largest float32 that is not above a number.

    Eager NMS compares IoUs in float32 with a threshold in float64; with this one a comparison in float32 gives the
    same. IoUs of exactly 0.6 do occur: among the equal boxes that sparse towers give their inactive positions.
    """
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))


# The same as an operator without inside, for which the ONNX exporter puts ONNX's own NonMaxSuppression.
suppress_operator = torch.library.custom_op("d2_ext::suppress", suppress, mutates_args=())


@suppress_operator.register_fake
def _(boxes: Tensor, scores: Tensor, iou_thresh: float, limit: int) -> Tensor:
    return torch.empty_like(scores)
