"""Parameters and multiply-adds of dense detectors, by part and pyramid level.

Counted are convolutions and matrix products; one multiplication with its addition counts as one (what papers call a
"FLOP" in GFLOPs tables of detectors). Norms, activations, pooling and interpolation are left out, 0.1 % of the whole.
Nothing is computed: shapes come from a run without data.

Sparse towers (CEASC) are counted by their definition: mask and point-wise convolution at all positions, the masked
layers at the active ones. Their dense equivalent is the same layers at all positions, without the two.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.layers.sparse.tower import ContextSparseTower
from d2_ext.modeling.heads.sparse import BRANCHES

import torch
from torch import Tensor, nn

ActiveShares = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Count:
    """Multiply-adds of one piece of a model for one image.

    Attributes:
        part: ``"backbone"``, ``"fpn"`` or ``"head"``.
        piece: of the part, e.g. ``"res3"`` or ``"cls_tower layers"``.
        level: name of the pyramid level for the head, else empty.
        multiply_adds: those of inference.
        dense: those of the dense equivalent.
    """

    part: str
    piece: str
    level: str
    multiply_adds: float
    dense: float


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of ``backbone``, ``fpn``, ``head``, their ``total``, and how many of them are ``trained``.

    Norms whose scale and offset are frozen hold them as buffers, which are not counted.
    """
    counts = {"backbone": 0, "fpn": 0, "head": 0}
    for name, parameter in model.named_parameters():
        counts[_place(name)[0]] += parameter.numel()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counts | {"total": sum(counts.values()), "trained": trained}


def count_multiply_adds(
    model: nn.Module, size: tuple[int, int], active: float | ActiveShares | None = None
) -> list[Count]:
    """Count one inference.

    Args:
        model: a dense detector: ``backbone``, ``head`` and ``head_in_features``.
        size: (height, width) of the input in px, after padding.
        active: for sparse towers the share of active positions, in [0, 1]: one for all, or by branch ("cls", "reg")
            one per level.

    Returns:
        Counts in the order of the model's pieces, then levels.

    Raises:
        ConfigError: for a model with sparse towers, if ``active`` is not given or out of range; for a model that is no
            dense detector.
    """
    if not all(hasattr(model, name) for name in ("backbone", "head", "head_in_features")):
        raise ConfigError(
            f"{type(model).__name__} is no dense detector with a backbone and one head; such models cannot be counted "
            "by part. Choose a config of RetinaNet, GFL, FCOS, DeFCN or their sparse versions."
        )
    shell = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad():
        with _Hooks(shell, "backbone") as hooks:
            features = shell.backbone(torch.zeros(1, 3, *size, device="meta"))
        counts = list(_summed((*_place(name), "", n, n) for name, _, n in hooks.calls))
        levels = {name: features[name] for name in model.head_in_features}
        towers = {name: m for name, m in shell.head.named_modules() if isinstance(m, ContextSparseTower)}
        if towers:
            # Active shares by branch, one per level.
            if active is None:
                raise ConfigError(
                    "The head is sparse: its cost depends on the share of active positions. Give a share in [0, 1], or "
                    "images to measure it on."
                )
            if isinstance(active, int | float):
                active = {branch: [float(active)] * len(levels) for branch in BRANCHES}
            shares = {branch: list(values) for branch, values in active.items()}
            for branch, values in shares.items():
                if len(values) != len(levels) or not all(0 <= x <= 1 for x in values):
                    raise ConfigError(
                        f"Active shares of branch {branch!r} are {values}; expected {len(levels)} in [0, 1]."
                    )
            stem = getattr(shell.head, "mask_stem", None)  # other heads than ours may be built on towers
            if stem is not None:
                for level, x in levels.items():
                    everywhere = float(stem.weight.numel() * x.shape[-2] * x.shape[-1])
                    counts.append(Count("head", "mask_stem", level, everywhere, 0.0))
            for name, tower in towers.items():
                counts += _count_tower(name, tower, levels, shares[name.removesuffix("_tower")])
        else:
            # A call belongs to the finest level of its output's size.
            sizes = {tuple(x.shape[-2:]): name for name, x in reversed(list(levels.items()))}
            with _Hooks(shell, "head") as hooks:
                shell.head(list(levels.values()))
            counts += _summed((*_place(name), sizes.get(tuple(y.shape[-2:]), ""), n, n) for name, y, n in hooks.calls)
    return counts


def measure_active_shares(model: nn.Module, images: Tensor) -> dict[str, list[float]]:
    """Share of active positions of a sparse head, by branch one per level, over the whole padded images.

    Args:
        model: a detector whose head has ``hard_masks``.
        images: (N, 3, H, W), normalized and padded, see ``preprocess_image``.
    """
    with torch.no_grad():
        features = model.backbone(images)
        masks = model.head.hard_masks([features[name] for name in model.head_in_features])
    return {branch: [m.float().mean().item() for m in levels] for branch, levels in masks.items()}


def totals(counts: Sequence[Count]) -> dict[str, Count]:
    """Sum of each part, and ``total``."""
    sums: dict[str, Count] = {}
    for count in counts:
        for key in (count.part, "total"):
            before = sums.get(key, Count(key, "", "", 0, 0))
            sums[key] = replace(
                before,
                multiply_adds=before.multiply_adds + count.multiply_adds,
                dense=before.dense + count.dense,
            )
    return {key: sums[key] for key in sorted(sums, key=["backbone", "fpn", "head", "total"].index)}


def mean_counts(per_image: Sequence[Sequence[Count]]) -> list[Count]:
    """Mean over images of counts of the same model."""
    number = len(per_image)
    return [
        replace(
            rows[0],
            multiply_adds=sum(r.multiply_adds for r in rows) / number,
            dense=sum(r.dense for r in rows) / number,
        )
        for rows in zip(*per_image, strict=True)
    ]


def count_on_images(
    model: nn.Module, inputs: Sequence[Mapping[str, Any]]
) -> tuple[list[Count], list[dict[str, list[float]] | None]]:
    """Count inference on images, each at its own size and, for sparse towers, its own masks.

    Args:
        model: in evaluation mode, with trained weights if it is sparse.
        inputs: at least one dict with ``image`` (3, H, W), resized as in testing.

    Returns:
        The mean over the images, and by image the active shares (None for a dense head).

    Raises:
        ConfigError: for a model that is no dense detector.
    """
    per_image, shares = [], []
    for item in inputs:
        images = model.preprocess_image([item]).tensor
        has_masks = hasattr(getattr(model, "head", None), "hard_masks")
        active = measure_active_shares(model, images) if has_masks else None
        per_image.append(count_multiply_adds(model, tuple(images.shape[-2:]), active))
        shares.append(active)
    return mean_counts(per_image), shares


def measure_latency(model: nn.Module, inputs: Sequence[dict[str, Any]], runs: int) -> float:
    """Median seconds of a whole inference, one image at a time.

    Args:
        model: in evaluation mode.
        inputs: dicts with ``image`` (3, H, W).
        runs: of each image; one more before them warms up.
    """
    times = []
    with torch.no_grad():
        for run in range(runs + 1):
            for item in inputs:
                start = time.perf_counter()
                model([item])
                if next(model.parameters()).is_cuda:
                    torch.cuda.synchronize()
                if run:
                    times.append(time.perf_counter() - start)
    return statistics.median(times)


def _place(name: str) -> tuple[str, str]:
    """Part and piece of a module or parameter of the model, by its name."""
    words = name.split(".")
    if words[0] == "head":
        return "head", words[1] if len(words) > 1 else ""
    if words[:2] == ["backbone", "bottom_up"]:
        return "backbone", words[2] if len(words) > 2 else ""
    piece = words[1] if len(words) > 1 else ""
    is_pyramid = piece.startswith(("fpn_", "top_block"))
    return ("fpn" if is_pyramid else "backbone"), piece


class _Hooks:
    """Counts the calls of all modules below one that own a weight of two or more dimensions."""

    def __init__(self, model: nn.Module, below: str) -> None:
        self.calls: list[tuple[str, Tensor, float]] = []
        self.handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in model.named_modules()
            if name.startswith(f"{below}.")
            and isinstance(getattr(module, "weight", None), Tensor)
            and module.weight.dim() > 1
        ]

    def _hook(self, name: str) -> Any:
        def count(module: nn.Module, _: Any, output: Tensor) -> None:
            # each output element is one row of the weight times the numbers it covers, also with groups
            self.calls.append((name, output, float(output.numel() * module.weight.shape[1:].numel())))

        return count

    def __enter__(self) -> _Hooks:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _summed(rows: Iterable[tuple[str, str, str, float, float]]) -> Iterator[Count]:
    """Rows of equal part, piece and level as one, in the order of their first."""
    sums: dict[tuple[str, str, str], list[float]] = {}
    for part, piece, level, multiply_adds, dense in rows:
        entry = sums.setdefault((part, piece, level), [0.0, 0.0])
        entry[0] += multiply_adds
        entry[1] += dense
    return (Count(*key, *values) for key, values in sums.items())


def _count_tower(
    name: str, tower: ContextSparseTower, levels: Mapping[str, Tensor], shares: Sequence[float]
) -> Iterator[Count]:
    pieces = (
        ("mask", [tower.mask_conv], False),
        ("context", [tower.context_conv], False),
        ("layers", [layer.conv for layer in tower.layers], True),
        ("predictors", list(tower.predictors.values()), True),
    )
    for piece, convolutions, masked in pieces:
        per_position = sum(conv.weight.numel() for conv in convolutions)
        for (level, x), share in zip(levels.items(), shares):
            everywhere = float(per_position * x.shape[-2] * x.shape[-1])
            yield Count(
                "head", f"{name} {piece}", level, everywhere * (share if masked else 1), everywhere if masked else 0.0
            )
