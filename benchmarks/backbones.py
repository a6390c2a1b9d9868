"""Latency, memory and training step of every backbone, beside Detectron2's ResNets in the same run.

Each backbone takes turns with ResNet-50, so whatever else the machine does meets both; ``ratio_r50`` is its time over
ResNet-50's (below 1: faster). It runs as it is, with channels-last weights, with its norms folded (and channels-last),
and, on request, compiled. ``fold_speedup`` is the time as it is over the folded one, ``fold_same_layout`` the
channels-last time over it, ``fold_error`` the largest difference of a feature over its largest value. Peak memory
counts tensors, without weights. ``recompute`` stands for gradient checkpointing in a training step. Where timm is
installed its model is measured beside ours: the same body for VoVNet (but one gate a stage in 39, 57 and 99), and
gated convolutional networks of about the same size for MogaNet, which it has not.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any

from d2_ext.layers.fold import fold_norms
from d2_ext.modeling.backbone import MOGANET_SPECS, VOVNET_SPECS, DetNet, MogaNet, VoVNet
from d2_ext.utils.memory import PeakMemory

import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from side_by_side import medians, rows_to_extend, write_json
from torch import Tensor, nn

RESNETS = {"R-18": 18, "R-50": 50, "R-101": 101}
TIMM_NAMES = {
    "V-19-slim-dw-eSE": "ese_vovnet19b_slim_dw",
    "V-19-dw-eSE": "ese_vovnet19b_dw",
    "V-19-slim-eSE": "ese_vovnet19b_slim",
    "V-39-eSE": "ese_vovnet39b",
    "V-57-eSE": "ese_vovnet57b",
    "V-99-eSE": "ese_vovnet99b",
    "V-39": "vovnet39a",
    "V-57": "vovnet57a",
    "MogaNet-xtiny": "starnet_s1",
    "MogaNet-tiny": "mambaout_femto",
    "MogaNet-small": "mambaout_tiny",
    "MogaNet-base": "mambaout_small",
    "MogaNet-large": "mambaout_base",
}
REFERENCE = "R-50"
COLUMNS = ("latency_ms", "ratio_r50", "channels_last_ms", "folded_ms", "fold_speedup", "peak_mb", "train_ms")
EXAMPLES = """examples:
  python benchmarks/backbones.py --models V-39-eSE DetNet-59 --size 320 320
  python benchmarks/backbones.py --size 320 320 --size 800 1344 --train --compile --json results/bench/backbones.json
  # in several short runs: a row that was measured is not measured again
  python benchmarks/backbones.py --models V-39-eSE --size 320 320 --compile --json results/bench/backbones.json
  python benchmarks/backbones.py --size 320 320 --max-seconds 5 --extend --json results/bench/backbones.json
"""


def known_models() -> list[str]:
    """Names of all backbones, smallest family first."""
    return [*RESNETS, *VOVNET_SPECS, "DetNet-59", *(f"MogaNet-{arch}" for arch in MOGANET_SPECS)]


def build(name: str, recompute: bool = False) -> nn.Module:
    """A backbone with four features (DetNet five), frozen norms that are not the identity, and random weights."""
    if name in RESNETS:
        net = build_resnet(RESNETS[name])
    elif name == "DetNet-59":
        net = DetNet(recompute=recompute)
    elif name in VOVNET_SPECS:
        net = VoVNet(body=name, recompute=recompute)
    else:
        net = MogaNet(arch=name.removeprefix("MogaNet-"), recompute=recompute)
    for module in net.modules():
        if isinstance(module, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return net


def build_resnet(depth: int) -> nn.Module:
    """Detectron2's ResNet as its configs have it: frozen norms, stride in the first 1x1 convolution."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def build_timm(name: str) -> nn.Module | None:
    """timm's counterpart, if timm is installed and has one."""
    if name not in TIMM_NAMES or importlib.util.find_spec("timm") is None:
        return None
    import timm

    return timm.create_model(TIMM_NAMES[name], features_only=True) if timm.is_model(TIMM_NAMES[name]) else None


def forward(net: nn.Module, x: Tensor) -> Callable[[], Any]:
    """The inference to time."""

    def run() -> Any:
        with torch.no_grad():
            return net(x)

    return run


def train_step(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """The training step to time: forward and backward of all features."""

    def run() -> None:
        net.train()
        net.zero_grad(set_to_none=True)
        sum(feature.float().square().mean() for feature in net(x).values()).backward()

    return run


def peak_mb(net: nn.Module, x: Tensor, step: Callable[[nn.Module, Tensor], Callable[[], Any]]) -> float:
    """Peak memory, in 2**20 bytes, of the tensors that ``step(net, x)`` makes."""
    if x.is_cuda:
        run = step(net, x)
        run()  # the gradients of a later step take the place of those of this one
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    run = step(copy.deepcopy(net).to("meta"), x.to("meta"))  # sizes alone: exact, and nothing is computed
    with PeakMemory() as memory:
        run()
    return memory.peak / 2**20


@torch.no_grad()
def fold_error(net: nn.Module, folded: nn.Module, x: Tensor) -> float:
    """Largest difference of a feature, relative to its largest value, on at most 320x320 pixels of the images."""
    x = x[:, :, :320, :320]
    expected, got = net(x), folded(x)
    return max(((got[k] - expected[k]).abs().max() / expected[k].abs().max()).item() for k in expected)


def measure(name: str, x: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one backbone at one size."""
    net = build(name).to(args.device).eval()
    folded, theirs = None, None
    runs = {"latency": forward(net, x)}
    if name != REFERENCE:
        runs["r50"] = forward(build(REFERENCE).to(args.device).eval(), x)
    if not args.plain:
        folded = fold_norms(net)
        runs["folded"] = forward(folded, x)
        channels_last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        runs["channels_last"] = forward(channels_last, x.to(memory_format=torch.channels_last))
        theirs = build_timm(name)
    if theirs is not None:
        runs["timm"] = forward(theirs.to(args.device).eval(), x)
    if args.compile:
        runs["compiled"] = forward(torch.compile(net), x)
    seconds = medians(runs, repeats=args.repeats, warmup=0, max_seconds=args.max_seconds)
    row: dict[str, Any] = {
        "backbone": name,
        "size": list(x.shape[-2:]),
        "parameters": sum(p.numel() for p in net.parameters()),
        "images_per_s": x.shape[0] / seconds["latency"],
        "ratio_r50": seconds["latency"] / seconds.get("r50", seconds["latency"]),
        "peak_mb": peak_mb(net, x, forward),
    }
    row |= {f"{key}_ms": 1e3 * value for key, value in seconds.items()}
    if folded is not None:
        row["fold_speedup"] = seconds["latency"] / seconds["folded"]
        row["fold_same_layout"] = seconds["channels_last"] / seconds["folded"]
        row["fold_error"] = fold_error(net, folded, x)
    if theirs is not None:
        row |= {"timm": TIMM_NAMES[name], "timm_parameters": sum(p.numel() for p in theirs.parameters())}
    return row | training_memory(name, x, args) | (training_time(name, x, args) if args.train else {})


def training_nets(name: str, device: str) -> dict[str, nn.Module]:
    """The backbone with and, where it can, without kept activations."""
    nets = {"train": build(name)} | ({} if name in RESNETS else {"recompute": build(name, recompute=True)})
    return {key: net.to(device) for key, net in nets.items()}


def training_memory(name: str, x: Tensor, args: argparse.Namespace) -> dict[str, float]:
    """Peaks of a training step: activations and gradients."""
    if x.is_cuda and not args.train:
        return {}
    return {f"{key}_peak_mb": peak_mb(net, x, train_step) for key, net in training_nets(name, args.device).items()}


def training_time(name: str, x: Tensor, args: argparse.Namespace) -> dict[str, float]:
    """Median times of a training step."""
    nets = training_nets(name, args.device) | ({} if name == REFERENCE else {"r50_train": build(REFERENCE)})
    runs = {key: train_step(net.to(args.device), x) for key, net in nets.items()}
    seconds = medians(runs, repeats=args.repeats, warmup=0, max_seconds=args.max_seconds)
    return {f"{key}_ms": 1e3 * value for key, value in seconds.items()}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=known_models(), default=known_models(), metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, action="append", metavar=("HEIGHT", "WIDTH"), help="repeatable")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10, help="rounds of a row (default: %(default)s)")
    parser.add_argument(
        "--max-seconds", type=float, default=math.inf, help="start no further round of a row after so long"
    )
    parser.add_argument(
        "--plain", action="store_true", help="only as it is, for the largest: not channels-last, folded, timm's"
    )
    parser.add_argument("--train", action="store_true", help="also time training steps, with and without recomputing")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write the rows to this file, after each row")
    parser.add_argument("--extend", action="store_true", help="keep that file's rows and measure only missing ones")
    args = parser.parse_args(argv)
    args.rows = []
    if args.extend:
        if not args.json:
            parser.error("--extend needs --json FILE")
        try:
            args.rows = rows_to_extend(args.json)
        except ValueError as problem:
            parser.error(str(problem))
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    args = parse(argv)
    torch.manual_seed(0)
    print(f"{'backbone':18} {'size':>10}  " + " ".join(f"{column:>16}" for column in COLUMNS))
    measured = {(row["backbone"], *row["size"]) for row in args.rows}
    for height, width in args.size or [[320, 320]]:
        x = torch.rand(args.batch, 3, height, width, device=args.device)
        for name in args.models:
            if (name, height, width) in measured:
                continue
            row = measure(name, x, args)
            args.rows.append(row)
            cells = " ".join(f"{row[c]:16.2f}" if c in row else " " * 15 + "-" for c in COLUMNS)
            print(f"{name:18} {height:>5}x{width:<5} {cells}", flush=True)
            if args.json:
                write_json(args.json, in_order(args.rows))
    return 0


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by size, then as ``known_models`` has them, in whatever order they were measured."""
    return sorted(rows, key=lambda row: (row["size"], known_models().index(row["backbone"])))


if __name__ == "__main__":
    raise SystemExit(main())
