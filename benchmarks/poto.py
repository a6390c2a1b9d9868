"""POTO's matching against ``scipy.optimize.linear_sum_assignment`` on the whole quality matrix.

Two comparisons at the locations of an 800 x 1344 image: the matching alone, both sides given the (boxes, locations)
matrix; and the whole assignment, from predictions and boxes to labels, against the dense matrix of qualities that the
paper's code builds and SciPy's matching of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from d2_ext.modeling.assigners.candidates import sampling_regions
from d2_ext.modeling.assigners.matching import match_one_to_one
from d2_ext.modeling.assigners.poto import assign_one_to_one, poto_quality
from d2_ext.modeling.box_codec import PointGrid, decode_ltrb, encode_ltrb, make_point_grid
from d2_ext.modeling.losses.iou import pairwise_iou

import torch
from scipy.optimize import linear_sum_assignment
from side_by_side import medians, write_json
from torch import Tensor

SIZES = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]  # P3..P7 of 800 x 1344: 22400 locations
STRIDES = [8, 16, 32, 64, 128]
CLASSES = 10
ALPHA = 0.8
EXAMPLES = """examples:
  python benchmarks/poto.py
  python benchmarks/poto.py --boxes 20 300 --radius 0 --json results/bench/poto.json
"""


def scene(num_boxes: int, grid: PointGrid, crowded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes XYXY px of 4 to 180 px, classes, logits and distances of a half trained detector."""
    sizes = (torch.rand(num_boxes, 2) * 3.8 + 1.4).exp()
    centers = torch.rand(num_boxes, 2) * torch.tensor([1344.0, 800.0]) * (0.25 if crowded else 1.0)
    boxes = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1)
    logits = torch.randn(len(grid.points), CLASSES) - 2
    distances = torch.rand(len(grid.points), 4) * 3 * grid.point_strides[:, None]
    return boxes, torch.randint(CLASSES, (num_boxes,)), logits, distances


def dense_quality(
    grid: PointGrid, boxes: Tensor, classes: Tensor, logits: Tensor, distances: Tensor, radius: float
) -> Tensor:
    """Quality of all pairs (M, R), -1 where the spatial prior forbids them: the definition."""
    scores = logits.sigmoid().t()[classes]
    iou = pairwise_iou(boxes, decode_ltrb(grid.points, distances))
    regions = sampling_regions(boxes, torch.tensor(grid.strides, dtype=torch.float32), radius)[:, grid.point_levels]
    inside = (encode_ltrb(grid.points.expand(len(boxes), -1, -1), regions) > 0).all(dim=-1)
    return torch.where(inside, scores ** (1 - ALPHA) * iou**ALPHA, -1.0)


def measure(num_boxes: int, radius: float, crowded: bool, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    grid = make_point_grid(SIZES, STRIDES)
    inputs = scene(num_boxes, grid, crowded)
    quality = dense_quality(grid, *inputs, radius)

    def ours() -> Tensor:
        candidates = poto_quality(grid, *inputs[:3], None, inputs[3], alpha=ALPHA, radius=radius)
        return assign_one_to_one(candidates, num_boxes, len(grid.points))

    def scipy_matching(matrix: Tensor) -> Tensor:
        return torch.from_numpy(linear_sum_assignment(matrix.numpy(), maximize=True)[1])

    column = scipy_matching(quality)
    matched = torch.full((len(grid.points),), -1)
    matched[column] = torch.arange(num_boxes)
    seconds = medians(
        {
            "scipy": lambda: scipy_matching(quality),
            "ours": lambda: match_one_to_one(quality),
            "scipy_whole": lambda: scipy_matching(dense_quality(grid, *inputs, radius)),
            "ours_whole": ours,
        },
        repeats=repeats,
    )
    return {
        "boxes": num_boxes,
        "locations": len(grid.points),
        "radius": radius,
        "crowded": crowded,
        "ratio": seconds["scipy"] / seconds["ours"],
        "ratio_whole": seconds["scipy_whole"] / seconds["ours_whole"],
        "same": bool(torch.equal(match_one_to_one(quality), column) and torch.equal(ours(), matched)),
        **{f"{name}_ms": 1000 * value for name, value in seconds.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 1 if any assignment differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--boxes", type=int, nargs="+", default=[20, 50, 100, 200, 300])
    parser.add_argument("--radius", type=float, nargs="+", default=[1.5, 0.0], help="strides; 0 = the whole box")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    cases = [(n, radius, crowded) for crowded in (False, True) for radius in args.radius for n in args.boxes]
    rows = [measure(*case, args.repeats) for case in cases]
    print("boxes  radius  crowded   matching: SciPy    ours  ratio     whole: SciPy    ours  ratio   same")
    for row in rows:
        print(
            f"{row['boxes']:5}  {row['radius']:6}  {row['crowded']!s:7} {row['scipy_ms']:14.2f} ms "
            f"{row['ours_ms']:6.2f} {row['ratio']:6.1f} {row['scipy_whole_ms']:13.1f} ms {row['ours_whole_ms']:6.1f} "
            f"{row['ratio_whole']:6.1f}   {row['same']}"
        )
    if args.json:
        write_json(args.json, rows)
    return 0 if all(row["same"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
