"""One list of detections from those of overlapping tiles.

A detector has settled each tile by itself, with NMS or, like DeFCN, without. So nothing is ever suppressed within a
tile: running NMS over everything would take from an NMS-free detector the close objects it has told apart. Only
detections of *different* tiles are compared, where both tiles see: in the zone that they share.

1. Two detections of one class are the same object if, clipped to the shared zone, their IoU reaches the threshold, or
   if one of them touches a cut of its tile and lies in the other by that share of its own area.
2. A whole detection (touching no cut) of higher score absorbs the same object's detections of other tiles: of each
   tile the best matching whole one at most, since a tile shows an object once, and any number of its parts.
3. Parts that no whole detection has absorbed belong to objects larger than the shared zone. Those that match are
   joined: the box around them, with the highest of their scores.

Letters: T tiles, M detections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from d2_ext.inference.tiles import Tile

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.structures.boxes import pairwise_intersection
from torch import Tensor

CUT_MARGIN = 0.01  # of a tile's side: a box that ends so near a cut touches it
MIN_CUT_MARGIN = 2.0  # px


@dataclass(frozen=True)
class _Pair:
    """Detections of two tiles that are the same object, by their numbers among all."""

    first: int
    second: int
    overlap: float


def merge_tiles(
    tiles: Sequence[Tile], found: Sequence[Instances], image_size: tuple[int, int], *, iou: float
) -> Instances:
    """Merge the detections of all tiles of one image.

    Args:
        tiles: T tiles.
        found: their detections, boxes XYXY px of the tile, with ``scores`` and ``pred_classes``; other fields, such
            as masks, are left out.
        image_size: (height, width) of the whole image, px.
        iou: threshold in (0, 1].

    Returns:
        Detections in px of the whole image, best first.
    """
    if not tiles:
        no_scores, no_classes = torch.zeros(0), torch.zeros(0, dtype=torch.long)
        return Instances(image_size, pred_boxes=Boxes(torch.zeros(0, 4)), scores=no_scores, pred_classes=no_classes)
    shifted = []
    for instances, tile in zip(found, tiles, strict=True):
        boxes, (x, y) = instances.pred_boxes.tensor, tile.box[:2]
        moved = Boxes(boxes + boxes.new_tensor([x, y, x, y]))
        fields = {"scores": instances.scores, "pred_classes": instances.pred_classes}
        shifted.append(Instances(image_size, pred_boxes=moved, **fields))
    cuts = [touches_cut(instances.pred_boxes.tensor, tile) for instances, tile in zip(shifted, tiles)]
    merged = Instances.cat(shifted)
    pairs = list(_same_objects(tiles, shifted, cuts, iou))
    is_cut = torch.cat(cuts).tolist()
    tile_of = [number for number, instances in enumerate(shifted) for _ in range(len(instances))]
    gone = _absorb(pairs, merged.scores.tolist(), is_cut, tile_of)
    gone |= _join_parts(merged, [p for p in pairs if is_cut[p.first] and is_cut[p.second]], gone)
    keep = torch.tensor([i for i in range(len(merged)) if i not in gone], dtype=torch.long)
    merged = merged[keep]
    return merged[merged.scores.argsort(descending=True, stable=True)]


def touches_cut(boxes: Tensor, tile: Tile) -> Tensor:
    """Which boxes (M, 4) XYXY px of the whole image end at a cut of their tile: bool (M,)."""
    sides = boxes.new_tensor(tile.box)
    extent = (sides[2:] - sides[:2]).repeat(2)
    near = (boxes - sides).abs() <= (CUT_MARGIN * extent).clamp(min=MIN_CUT_MARGIN)
    return (near & torch.tensor(tile.inner)).any(dim=1)


def _same_objects(
    tiles: Sequence[Tile], found: Sequence[Instances], cuts: Sequence[Tensor], iou: float
) -> Iterator[_Pair]:
    """Matches between all pairs of tiles that share a zone; see rule 1 of the module."""
    starts = torch.tensor([0, *map(len, found)]).cumsum(0).tolist()
    areas = Boxes(torch.tensor([tile.box for tile in tiles], dtype=torch.float32))
    # One row at a time: a table of all pairs would grow with the square of T.
    sharing = (
        (a, a + 1 + b)
        for a in range(len(tiles))
        for b in (pairwise_intersection(areas[a], areas[a + 1 :])[0] > 0).nonzero()[:, 0].tolist()
    )
    for a, b in sharing:
        zone = [max(tiles[a].box[i], tiles[b].box[i]) for i in (0, 1)]
        zone += [min(tiles[a].box[i], tiles[b].box[i]) for i in (2, 3)]
        rows_a, rows_b = _inside(found[a], zone), _inside(found[b], zone)
        if len(rows_a) == 0 or len(rows_b) == 0:
            continue
        overlap = _overlap(found[a][rows_a], found[b][rows_b], cuts[a][rows_a], cuts[b][rows_b], zone)
        for i, j in (overlap >= iou).nonzero().tolist():
            first, second = starts[a] + rows_a[i].item(), starts[b] + rows_b[j].item()
            yield _Pair(first, second, overlap[i, j].item())


def _inside(instances: Instances, zone: list[int]) -> Tensor:
    """Numbers of the detections that reach into a zone."""
    boxes = instances.pred_boxes.tensor
    limits = boxes.new_tensor(zone)
    return ((boxes[:, :2] < limits[2:]) & (boxes[:, 2:] > limits[:2])).all(dim=1).nonzero()[:, 0]


def _overlap(a: Instances, b: Instances, cut_a: Tensor, cut_b: Tensor, zone: list[int]) -> Tensor:
    """How much the detections of two tiles are the same, (Ma, Mb) in [0, 1]; 0 for different classes."""
    overlap = pairwise_iou(_clipped(a.pred_boxes, zone), _clipped(b.pred_boxes, zone))
    shared = pairwise_intersection(a.pred_boxes, b.pred_boxes)
    share_a = shared / a.pred_boxes.area()[:, None].clamp(min=1e-6) * cut_a[:, None]
    share_b = shared / b.pred_boxes.area()[None].clamp(min=1e-6) * cut_b[None]
    overlap = torch.maximum(overlap, torch.maximum(share_a, share_b))
    return overlap * (a.pred_classes[:, None] == b.pred_classes[None])


def _clipped(boxes: Boxes, zone: list[int]) -> Boxes:
    limits = boxes.tensor.new_tensor(zone)
    low, high = limits[:2].repeat(2), limits[2:].repeat(2)
    return Boxes(boxes.tensor.clamp(min=low, max=high))


def _absorb(pairs: Sequence[_Pair], scores: list[float], is_cut: list[bool], tile_of: list[int]) -> set[int]:
    """Numbers of the detections that a whole detection stands for; see rule 2 of the module."""
    partners: dict[int, list[tuple[float, int]]] = {}
    for pair in pairs:
        partners.setdefault(pair.first, []).append((pair.overlap, pair.second))
        partners.setdefault(pair.second, []).append((pair.overlap, pair.first))
    gone: set[int] = set()
    kept: set[int] = set()
    for number in sorted((n for n in partners if not is_cut[n]), key=lambda n: -scores[n]):
        if number in gone:
            continue
        kept.add(number)
        served: set[int] = set()
        for _, other in sorted(partners[number], reverse=True):
            if other in gone or other in kept or (not is_cut[other] and tile_of[other] in served):
                continue
            gone.add(other)
            if not is_cut[other]:
                served.add(tile_of[other])
    return gone


def _join_parts(merged: Instances, pairs: Sequence[_Pair], gone: set[int]) -> set[int]:
    """Join matching parts in place, into the first of each group; the others come back. See rule 3 of the module."""
    group = {n: n for pair in pairs for n in (pair.first, pair.second) if n not in gone}

    def root(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for pair in pairs:
        if pair.first in group and pair.second in group:
            low, high = sorted((root(pair.first), root(pair.second)))
            group[high] = low
    boxes, scores = merged.pred_boxes.tensor, merged.scores
    for number in group:
        first = root(number)
        boxes[first, :2] = torch.minimum(boxes[first, :2], boxes[number, :2])
        boxes[first, 2:] = torch.maximum(boxes[first, 2:], boxes[number, 2:])
        scores[first] = torch.maximum(scores[first], scores[number])
    return {number for number in group if root(number) != number}
