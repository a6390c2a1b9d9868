"""Augmentations that change pixel values only; public in ``augmentation_impl``."""

from __future__ import annotations

from typing import Any

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from .augmentation import Augmentation


class _RandomIntensity(Augmentation):
    """Blend the picture with another one; the picture's weight is drawn from [intensity_min, intensity_max].

    A weight below 1 weakens the property in question, one above 1 strengthens it.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        self._init(locals())

    def _opposite(self, image: np.ndarray) -> Any:
        """What the picture is at weight 0."""
        raise NotImplementedError

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=self._opposite(image), src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomIntensity):
    """Blend with the mean of all pixels."""

    def _opposite(self, image: np.ndarray) -> Any:
        return image.mean()


class RandomBrightness(_RandomIntensity):
    """Blend with black."""

    def _opposite(self, image: np.ndarray) -> Any:
        return 0


class RandomSaturation(_RandomIntensity):
    """Blend with the grey version; the picture must be RGB."""

    def _opposite(self, image: np.ndarray) -> Any:
        assert image.shape[-1] == 3, f"expected an RGB picture, got shape {image.shape}"
        return image.dot([0.299, 0.587, 0.114])[:, :, np.newaxis]  # luma of BT.601


class RandomLighting(Augmentation):
    """Add a colour along the principal components of ImageNet's pixels (AlexNet, section 4.1); RGB only.

    Args:
        scale: standard deviation of the weights of the components.
    """

    def __init__(self, scale: float) -> None:
        self._init(locals())
        self.eigen_vecs = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        assert image.shape[-1] == 3, f"expected an RGB picture, got shape {image.shape}"
        weights = np.random.normal(scale=self.scale, size=3)
        color = self.eigen_vecs.dot(weights * self.eigen_vals)
        return BlendTransform(src_image=color, src_weight=1.0, dst_weight=1.0)
