"""Speed of a sparse detector against its dense twin with the same backbone and towers of the same shapes.

For an image of 3 x 800 x 1344 and the recipe of a sparse detector, by default RetinaNet-CEASC with ResNet-18 and 512
channels: the head alone on random features, and the whole model from an image to its boxes. Masks are random blobs of a
given share, the same for both branches, so that leaving out boxes without a class saves nothing; the mask convolutions
run nevertheless. The dense side takes the faster order of memory. Beside each ratio stands its bound, that of the
multiply-adds. Dense and sparse sides alternate.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from d2_ext.config.load import load_config
from d2_ext.errors import ConfigError, DatasetError
from d2_ext.images import read_input
from d2_ext.layers.fold import fold_norms
from d2_ext.layers.sparse.gumbel import Mask
from d2_ext.modeling.heads.sparse import BRANCHES, SparseHead

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from side_by_side import machine, medians, peak_memory, rows_to_extend, write_json
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/VisDrone/retinanet_ceasc_R18_FPN512.yaml"
DENSE_TWINS = {"RetinaNetCEASC": "RetinaNet", "GFLCEASC": "GFL"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Masks = dict[str, list[Mask]]
EXAMPLES = """examples:
  all shares, result kept:
    python benchmarks/ceasc.py --json results/bench/ceasc_cpu.json
  one share, head only, on a machine where others work too (one thread, its own time):
    python benchmarks/ceasc.py --active 10 --head-only --threads 1 --clock cpu
  heads of the light FCOS with 128 channels and four layers, beside those that the file holds already:
    python benchmarks/ceasc.py --config Lite/fcos_sparse_s.yaml --head-only --json light.json --extend --opts \\
        MODEL.FPN.OUT_CHANNELS 128 MODEL.FCOS.NUM_CLS_CONVS 4 MODEL.FCOS.NUM_BOX_CONVS 4
  the masks of a trained model on an image:
    python benchmarks/ceasc.py --weights model_final.pth --image image.jpg
"""


@dataclass(frozen=True)
class Sides:
    """Both models, in evaluation mode, and what they get.

    Attributes:
        dense: the dense twin, its head in its faster order of memory.
        sparse: the sparse detector.
        inputs: one image, in Detectron2's format.
        features: L maps (1, C, H, W), channels-last.
        dense_features: the same in the order of the dense model.
    """

    dense: nn.Module
    sparse: nn.Module
    inputs: list[dict[str, Any]]
    features: list[Tensor]
    dense_features: list[Tensor]


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--active", type=float, nargs="*", default=[5, 10, 20, 30], help="active shares, per cent")
    parser.add_argument("--size", type=int, nargs=2, default=[800, 1344], metavar=("HEIGHT", "WIDTH"), help="px")
    parser.add_argument("--config", default=str(CONFIG), help="of the sparse model")
    parser.add_argument("--weights", default="", help="checkpoint of the sparse model, whose own masks are added")
    parser.add_argument("--image", default="", help="image for the masks of --weights, resized as in tests")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one for warming up")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of all threads together")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="16-bit types run under autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fold", action="store_true", help="fold the frozen norms of both backbones")
    parser.add_argument("--head-only", action="store_true", help="leave out the whole models")
    parser.add_argument("--json", default="", metavar="FILE", help="write the result there")
    parser.add_argument("--extend", action="store_true", help="keep the rows that the file of --json has")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="changes of the config")
    return parser


def build_sides(args: argparse.Namespace) -> Sides:
    """Build both models and their inputs.

    Raises:
        ConfigError: for a config that cannot be used.
    """
    torch.manual_seed(0)
    cfg = load_config(args.config, ["MODEL.DEVICE", args.device, *args.opts])
    dense, sparse = build_model(dense_twin(cfg)).eval(), build_model(cfg).eval()
    if args.weights:
        DetectionCheckpointer(sparse).load(args.weights)
    dense.backbone.load_state_dict(sparse.backbone.state_dict())
    inputs = [image(cfg, args)]
    if args.fold:
        dense.backbone, sparse.backbone = fold_norms(dense.backbone), fold_norms(sparse.backbone)
    images = sparse.preprocess_image(inputs)
    maps = sparse.backbone(images.tensor)
    features = [maps[name] for name in sparse.head_in_features]
    if not args.weights:  # untrained networks let their features grow or vanish
        features = [torch.randn_like(x) for x in features]
    layout = faster_layout(dense.head, features)
    dense.to(memory_format=layout)
    return Sides(dense, sparse, inputs, features, [x.contiguous(memory_format=layout) for x in features])


def dense_twin(cfg: CfgNode) -> CfgNode:
    """Config of the detector that differs from a sparse one in its towers alone.

    Raises:
        ConfigError: it is not of a sparse detector.
    """
    twin, name = cfg.clone(), cfg.MODEL.META_ARCHITECTURE
    twin.defrost()
    if name in DENSE_TWINS:
        twin.MODEL.META_ARCHITECTURE = DENSE_TWINS[name]
    elif name in ("FCOS", "DeFCN") and cfg.MODEL[name.upper()].SPARSE:
        twin.MODEL[name.upper()].SPARSE = False
    else:
        raise ConfigError(f"--config builds a dense {name}; expected a recipe of a sparse detector.")
    return twin


def image(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """The image that is given, resized as in tests, or noise of the size that is given."""
    if not args.image:
        return {"image": torch.randint(0, 256, (3, *args.size), dtype=torch.uint8)}
    return read_input(cfg, args.image)


def faster_layout(head: nn.Module, features: list[Tensor]) -> torch.memory_format:
    """Order of memory in which a dense head is faster, by one round after one for warming up."""
    orders = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}

    def call(order: torch.memory_format) -> None:
        head.to(memory_format=order)
        head([x.contiguous(memory_format=order) for x in features])

    times = medians({name: partial(call, order) for name, order in orders.items()}, repeats=1)
    return orders[min(times, key=times.get)]


def random_masks(features: Sequence[Tensor], share: float) -> Masks:
    """Random blobs for maps (1, C, H, W): rectangles of 1 to 5 cells a side, the same for both branches."""
    generator = torch.Generator().manual_seed(1)
    masks = []
    for x in features:
        height, width = x.shape[2:]
        mask = torch.zeros(height, width)
        wanted = round(share * height * width)
        while mask.sum() < wanted:
            size = torch.randint(1, 6, (2,), generator=generator)
            top, left = (int(torch.randint(0, n, (1,), generator=generator)) for n in (height, width))
            mask[top : top + size[0], left : left + size[1]] = 1
        surplus = mask.view(-1).nonzero().squeeze(1)[wanted:]
        mask.view(-1)[surplus] = 0
        masks.append(Mask(mask.to(x.device)[None, None]))
    return dict.fromkeys(BRANCHES, masks)


class FixedMasks:
    """Puts given masks in the place of a head's own, which are computed all the same."""

    def __init__(self, head: SparseHead) -> None:
        self.head, self.own, self.masks = head, head.masks, None
        head.masks = self

    def __call__(self, features: Sequence[Tensor], noise: Any = None) -> Masks:
        """Stand for ``SparseHead.masks``."""
        own = self.own(features, noise)
        return own if self.masks is None else self.masks


def measure(sides: Sides, cases: list[tuple[str, Masks]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time both sides in turn; a row for each case."""
    fixed = FixedMasks(sides.sparse.head)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    runs: dict[str, Callable[[], Any]] = {"dense head": lambda: sides.dense.head(sides.dense_features)}
    if not args.head_only:
        runs["dense model"] = lambda: sides.dense(sides.inputs)

    def sparse(function: Callable[[Any], Any], inputs: Any, masks: Masks) -> None:
        fixed.masks = masks
        function(inputs)

    for name, masks in cases:
        runs[f"head {name}"] = partial(sparse, partial(sides.sparse.head, all_boxes=False), sides.features, masks)
        if not args.head_only:
            runs[f"model {name}"] = partial(sparse, sides.sparse, sides.inputs, masks)
    with autocast(args):
        seconds = medians(runs, repeats=args.rounds, clock=clock)
        memory = {name: peak_memory(run) for name, run in runs.items()}
        fixed.masks = None
        return [row(sides, name, masks, seconds, memory) for name, masks in cases]


def autocast(args: argparse.Namespace) -> Any:
    """Context in which a 16-bit type is used."""
    return nullcontext() if args.dtype == "float32" else torch.autocast(args.device, DTYPES[args.dtype])


def row(
    sides: Sides, name: str, masks: Masks, seconds: dict[str, float], memory: dict[str, float | None]
) -> dict[str, Any]:
    """The figures of one case."""
    backbone, head, sparse_head = multiply_adds(sides, masks)
    found: dict[str, Any] = {
        "channels": sides.features[0].shape[1],
        "layers": len(sides.sparse.head.cls_tower.layers),
        "size": list(sides.inputs[0]["image"].shape[1:]),
        "masks": name,
        "active": round(active_share(masks), 4),
        "head_ratio": seconds["dense head"] / seconds[f"head {name}"],
        "head_bound": head / sparse_head,
        "model_ratio": None,
        "model_bound": (backbone + head) / (backbone + sparse_head),
        "max_abs_diff": difference(sides.sparse.head, sides.features, masks),
    }
    for kind in ("head", "model"):
        if f"dense {kind}" in seconds:
            dense, sparse = f"dense {kind}", f"{kind} {name}"
            found[f"{kind}_ratio"] = seconds[dense] / seconds[sparse]
            found |= {f"{kind}_dense_s": seconds[dense], f"{kind}_sparse_s": seconds[sparse]}
            found |= {f"{kind}_dense_mib": memory[dense], f"{kind}_sparse_mib": memory[sparse]}
    return found


def active_share(masks: Masks) -> float:
    """Share of all positions that is active, mean of the branches."""
    values = torch.cat([m.active.flatten() for branch in masks.values() for m in branch])
    return values.float().mean().item()


def multiply_adds(sides: Sides, masks: Masks) -> tuple[float, float, float]:
    """Multiply-adds of the backbone, the dense head and the sparse head."""
    total = {"backbone": 0.0}

    def count(module: nn.Conv2d, _: Any, out: Tensor) -> None:
        total["backbone"] += out.numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in sides.sparse.backbone.modules() if isinstance(m, nn.Conv2d)]
    sides.sparse.backbone(sides.sparse.preprocess_image(sides.inputs).tensor)
    for hook in hooks:
        hook.remove()
    positions = sum(x.shape[2] * x.shape[3] for x in sides.features)
    stem = sides.sparse.head.mask_stem
    dense, sparse = 0.0, 0.0 if stem is None else float(positions * stem.weight.numel())
    for branch, tower in sides.sparse.head.towers().items():
        active = sum(float(m.active.sum()) for m in masks[branch])
        masked = sum(c.weight.numel() for c in (*(x.conv for x in tower.layers), *tower.predictors.values()))
        everywhere = tower.context_conv.weight.numel() + tower.mask_conv.weight.numel()
        dense += positions * masked
        sparse += active * masked + positions * everywhere
    return total["backbone"], dense, sparse


def difference(head: SparseHead, features: list[Tensor], masks: Masks) -> float:
    """Largest difference between the head's sparse and dense predictions."""
    largest = 0.0
    for branch, tower in head.towers().items():
        sparse, dense = tower.forward_sparse(features, masks[branch]), tower.forward_dense(features, masks[branch])
        for name, rows in sparse.predictions.items():
            largest = max(largest, (rows.dense().float() - dense.predictions[name].dense().float()).abs().max().item())
    return largest


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print what was measured."""
    columns = ("masks", "active", "head s", "dense", "ratio", "bound", "model s", "dense", "ratio", "bound", "max diff")
    print(" ".join(f"{name:>8}" for name in columns))
    for x in rows:
        figures = [x["masks"], f"{100 * x['active']:.1f} %"]
        for kind in ("head", "model"):
            times = [x.get(f"{kind}_sparse_s"), x.get(f"{kind}_dense_s"), x[f"{kind}_ratio"], x[f"{kind}_bound"]]
            figures += ["-" if v is None else f"{v:.3f}" for v in times]
        print(" ".join(f"{v:>8}" for v in [*figures, f"{x['max_abs_diff']:.1e}"]))
    for x in rows:
        peaks = [f"{k} {v:.0f}" for k, v in x.items() if k.endswith("_mib") and v is not None]
        print(f"peak MiB, {x['masks']}: {', '.join(peaks) or 'not known on this system'}")


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table; the result is the exit code."""
    args = argument_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.weights and not args.image:
        print("ceasc: --weights needs an image to compute its masks for. Add --image FILE.", file=sys.stderr)
        return 2
    try:
        earlier = rows_to_extend(args.json) if args.extend else []
        sides = build_sides(args)
    except (ConfigError, ValueError) as error:
        print(f"ceasc: {error}", file=sys.stderr)
        return 2
    except DatasetError as error:
        print(f"ceasc: {error}", file=sys.stderr)
        return 1
    cases = [(f"{p:g} %", random_masks(sides.features, p / 100)) for p in args.active]
    if args.weights:
        cases.append(("trained", sides.sparse.head.masks(sides.features)))
    print(f"{machine()}; {args.size[0]} x {args.size[1]}, {args.dtype}, {args.clock} clock, {args.rounds} rounds")
    rows = measure(sides, cases, args)
    print_table(rows)
    if args.json:
        write_json(args.json, [*earlier, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
