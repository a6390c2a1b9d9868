"""Which object each prediction belongs to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Matcher:
    """Gives every prediction its best object, and a label that says how good that pair is.

    Args:
        thresholds: positive and ascending; they cut the qualities into intervals that include their lower ends.
        labels: of the intervals, worst first: 1 (foreground), 0 (background) or -1 (takes no part).
        allow_low_quality_matches: also make the best predictions of every object foreground.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
        usable = len(thresholds) > 0 and min(thresholds) > 0 and sorted(thresholds) == list(thresholds)
        assert usable, f"thresholds {thresholds}: expected 0 < t1 <= t2 <= ..."
        assert len(labels) == len(thresholds) + 1, f"{thresholds} makes {len(thresholds) + 1} intervals, not {labels}"
        assert set(labels) <= {-1, 0, 1}, f"labels {labels}: only -1, 0 and 1 have a meaning"
        self.thresholds, self.labels = list(thresholds), list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match R predictions with M objects by qualities (M, R) of at least 0, for instance IoUs.

        Returns:
            Index of the object of each prediction (R,), int64, and its label (R,), int8. Without objects the index
            is 0, and the label that of the worst interval.
        """
        quality = match_quality_matrix
        assert quality.dim() == 2, f"the qualities have shape {tuple(quality.shape)}, expected (objects, predictions)"
        if quality.numel() == 0:
            nothing = quality.new_zeros(quality.shape[1], dtype=torch.int64)
            return nothing, self._labels_at(nothing)
        assert (quality >= 0).all(), "a match quality is negative or NaN"
        best, matches = quality.max(dim=0)
        labels = self._labels_at(torch.bucketize(best, best.new_tensor(self.thresholds), right=True))
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(labels, quality)
        return matches, labels

    def _labels_at(self, interval: Tensor) -> Tensor:
        return torch.tensor(self.labels, dtype=torch.int8, device=interval.device)[interval]

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Set labels (R,) to 1 in place where, by qualities (M, R), no other prediction is better for some object.

        Such a prediction keeps the object that it fits best itself, which may be another one.
        """
        unbeaten = match_quality_matrix == match_quality_matrix.amax(dim=1, keepdim=True)
        match_labels.masked_fill_(unbeaten.any(dim=0), 1)
