"""What VoVNet, DetNet and MogaNet share: a chain of named parts whose outputs are the features."""

from __future__ import annotations

from collections.abc import Sequence

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.layers.norms import freeze_module

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn

LOGITS = "logits"


class Trunk(Backbone):
    """Backbone made of parts (``stem``, ``stage2``, ...) that run one after the other, each ending in a feature.

    A subclass creates its modules, calls ``_add_part`` for each part from fine to coarse and ``_finish`` at the end.
    Parts behind the last requested feature are not to be built: ``wanted_parts`` tells which are needed.

    A trunk with a classifier also offers the feature ``"logits"``, (N, num_classes).
    """

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[str, tuple[str, ...]] = {}  # name of a part -> attributes that run in this order
        self._part_shapes: dict[str, ShapeSpec] = {}
        self._classifier = ""
        self._min_side = 1

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the requested features.

        Args:
            x: (N, C, H, W) normalized images.

        Returns:
            Feature name to (N, Cf, Hf, Wf), from fine to coarse.

        Raises:
            ValueError: if ``x`` is no batch of images or is too small for the last stage.
        """
        if x.dim() != 4:
            raise ValueError(f"{type(self).__name__} got a tensor of shape {tuple(x.shape)}, but wants (N, C, H, W).")
        # A trace must not depend on the sizes, which are tensors there.
        if not torch.jit.is_tracing() and min(x.shape[-2:]) < self._min_side:
            height, width = x.shape[-2:]
            raise ValueError(
                f"{type(self).__name__} got an image of {height}x{width} px, but its last stage needs at least "
                f"{self._min_side} px a side. Pad or enlarge the image, or request fewer features."
            )
        outputs: dict[str, Tensor] = {}
        for part, attributes in self._parts.items():
            for attribute in attributes:
                x = getattr(self, attribute)(x)
            if part in self._out_features:
                outputs[part] = x
        if LOGITS in self._out_features:
            outputs[LOGITS] = getattr(self, self._classifier)(x.mean(dim=(2, 3)))
        return outputs

    def freeze(self, freeze_at: int) -> Trunk:
        """Freeze the first parts: no gradients, batch norms become ``FrozenBatchNorm2d``. May be called at any time.

        Args:
            freeze_at: number of parts; 1 is the stem, 2 the stem and the first stage. 0 or less freezes nothing.

        Returns:
            The trunk.

        Raises:
            ConfigError: if the architecture has fewer parts.
        """
        names = self.part_names()
        if freeze_at > len(names):
            raise ConfigError(
                f"MODEL.BACKBONE.FREEZE_AT: {freeze_at} parts to freeze, but {type(self).__name__} has {len(names)}: "
                f"{', '.join(names)}. Choose 0 (nothing) to {len(names)} (everything)."
            )
        for part in names[: max(freeze_at, 0)]:
            for attribute in self._parts.get(part, ()):  # parts behind the last feature do not exist
                setattr(self, attribute, freeze_module(getattr(self, attribute)))
        return self

    def freeze_norms(self) -> Trunk:
        """Freeze the batch norms of every part, and only them: what the published VoVNet does once a part is frozen."""
        for attributes in self._parts.values():
            for attribute in attributes:
                setattr(self, attribute, freeze_module(getattr(self, attribute), parameters=False))
        return self

    @classmethod
    def part_names(cls) -> tuple[str, ...]:
        """Names of all parts of the architecture, also of those that are not built."""
        raise NotImplementedError

    @classmethod
    def wanted_parts(cls, out_features: Sequence[str], num_classes: int | None) -> tuple[str, ...]:
        """Check the requested features and tell which parts have to be built.

        Args:
            out_features: names of parts, or ``"logits"``.
            num_classes: None for a trunk without a classifier.

        Returns:
            The parts up to the last requested one.

        Raises:
            ConfigError: for no feature, an unknown one, logits without a classifier, or a classifier without logits.
        """
        names = cls.part_names()
        known = (*names, LOGITS) if num_classes else names
        if not out_features:
            raise ConfigError(f"OUT_FEATURES of {cls.__name__} is empty. Choose some of {', '.join(known)}.")
        for feature in out_features:
            if feature not in known:
                raise ConfigError(f"OUT_FEATURES of {cls.__name__}: no {feature!r}. {did_you_mean(feature, known)}")
        if num_classes and LOGITS not in out_features:
            raise ConfigError(
                f"{cls.__name__} gets num_classes {num_classes}, but OUT_FEATURES {list(out_features)} has no "
                f"{LOGITS!r}: no classifier would be built. Add {LOGITS!r}, or leave num_classes out."
            )
        last = max(len(names) if f == LOGITS else names.index(f) + 1 for f in out_features)
        return names[:last]

    def _add_part(self, name: str, attributes: Sequence[str], *, channels: int, stride: int) -> None:
        self._parts[name] = tuple(attributes)
        self._part_shapes[name] = ShapeSpec(channels=channels, stride=stride)

    def _add_classifier(self, attribute: str, num_classes: int) -> None:
        """Global average and a linear layer on the last part, which exists only if ``"logits"`` is requested."""
        setattr(self, attribute, nn.Linear(self.last_shape.channels, num_classes))
        self._classifier = attribute

    @property
    def last_shape(self) -> ShapeSpec:
        """Channels and stride of the last part that is built."""
        return list(self._part_shapes.values())[-1]

    def _finish(self, out_features: Sequence[str], num_classes: int | None) -> None:
        """Tell Detectron2 about the features, ordered from fine to coarse whatever the order of the request."""
        shapes = {name: shape for name, shape in self._part_shapes.items() if name in out_features}
        if LOGITS in out_features:
            shapes[LOGITS] = ShapeSpec(channels=num_classes, stride=self.last_shape.stride)
        self._out_features = list(shapes)
        self._out_feature_channels = {name: shape.channels for name, shape in shapes.items()}
        self._out_feature_strides = {name: shape.stride for name, shape in shapes.items()}
