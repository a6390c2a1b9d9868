"""Which object an anchor belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from detectron2.layers import nonzero_tuple
from torch import Tensor


class Matcher:
    """Assigns to each of N predictions one of M objects, and a label by how well they match.

    The best quality q of a prediction gives its label: ``labels[i]`` where ``thresholds[i - 1] <= q < thresholds[i]``,
    with thresholds of -inf and +inf at the ends.
    """

    def __init__(
        self, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality_matches: bool = False
    ) -> None:
        """Set the rules.

        Args:
            thresholds: ascending and positive.
            labels: one more than thresholds, each 0 (background), 1 (object) or -1 (ignored).
            allow_low_quality_matches: label the best predictions of each object 1, however bad they are
                (arXiv:1506.01497, Sec. 3.1.2, case i).
        """
        assert thresholds[0] > 0, f"Thresholds must be positive, not {thresholds}."
        thresholds = [-float("inf"), *thresholds, float("inf")]
        assert all(low <= high for low, high in pairwise(thresholds)), f"Not ascending: {thresholds}."
        assert all(label in (-1, 0, 1) for label in labels), f"Labels are -1, 0 or 1, not {labels}."
        assert len(labels) == len(thresholds) - 1, f"{len(labels)} labels for {len(thresholds) - 1} intervals."
        self.thresholds = thresholds
        self.labels = labels
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Match.

        Args:
            match_quality_matrix: (M, N), none negative; usually the IoU.

        Returns:
            The index in [0, M) of the object (N,), int64, and the label (N,), int8. Without objects, all indices are 0
            and all labels ``labels[0]``.
        """
        assert match_quality_matrix.dim() == 2, f"Not a matrix: {tuple(match_quality_matrix.shape)}."
        if match_quality_matrix.numel() == 0:
            num = match_quality_matrix.size(1)
            matches = match_quality_matrix.new_zeros(num, dtype=torch.int64)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)
        assert torch.all(match_quality_matrix >= 0), "A match quality is negative or NaN."
        quality, matches = match_quality_matrix.max(dim=0)
        match_labels = torch.ones_like(matches, dtype=torch.int8)
        for label, low, high in zip(self.labels, self.thresholds, self.thresholds[1:]):
            match_labels[(quality >= low) & (quality < high)] = label
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Label 1, in place, the predictions that are the best of some object, ties included.

        They keep the object of the highest quality, which may be another one.
        """
        best = match_quality_matrix.amax(dim=1, keepdim=True)  # (M, 1)
        _, predictions = nonzero_tuple(match_quality_matrix == best)
        match_labels[predictions] = 1
