"""Latency, memory and training step of every backbone, beside Detectron2's ResNets in the same run.

Each backbone takes turns with ResNet-50, so whatever else the machine does meets both; ``ratio_r50`` is its time over
ResNet-50's (below 1: faster). It runs as it is, with channels-last weights, with its norms folded (and channels-last),
and, on request, compiled; ``fold_speedup`` is the time as it is over the folded one, ``fold_error`` the largest
difference of a feature over its largest value. Peak memory counts tensors, without weights.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from d2_ext.layers.fold import fold_norms
from d2_ext.modeling.backbone import MOGANET_SPECS, VOVNET_SPECS, DetNet, MogaNet, VoVNet
from d2_ext.utils.memory import PeakMemory

import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from side_by_side import medians, write_json
from torch import Tensor, nn

RESNETS = {"R-18": 18, "R-50": 50, "R-101": 101}
TIMM_NAMES = {  # timm's models of the same sizes
    "V-19-slim-dw-eSE": "ese_vovnet19b_slim_dw",
    "V-19-dw-eSE": "ese_vovnet19b_dw",
    "V-19-slim-eSE": "ese_vovnet19b_slim",
    "V-39-eSE": "ese_vovnet39b",
    "V-57-eSE": "ese_vovnet57b",
    "V-99-eSE": "ese_vovnet99b",
}
REFERENCE = "R-50"
COLUMNS = ("latency_ms", "ratio_r50", "channels_last_ms", "folded_ms", "fold_speedup", "peak_mb", "train_ms")
EXAMPLES = """examples:
  python benchmarks/backbones.py --models V-39-eSE DetNet-59 --size 320 320
  python benchmarks/backbones.py --size 320 320 --size 800 1344 --train --compile --json results/bench/backbones.json
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
    """timm's model of the same sizes, if timm is installed and has one."""
    if name not in TIMM_NAMES or importlib.util.find_spec("timm") is None:
        return None
    import timm

    if TIMM_NAMES[name] not in timm.list_models("ese_vovnet*"):
        return None
    return timm.create_model(TIMM_NAMES[name], features_only=True)


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


def peak_mb(function: Callable[[], Any], device: str) -> float:
    """Peak memory of the tensors that a function makes, in 2**20 bytes."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with PeakMemory() as memory:
        function()
    return memory.peak / 2**20


def error(folded: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """Largest difference of a feature, relative to its largest value."""
    return max(((folded[k] - plain[k]).abs().max() / plain[k].abs().max()).item() for k in plain)


def measure(name: str, x: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one backbone at one size."""
    net = build(name).to(args.device).eval()
    folded = fold_norms(net)
    channels_last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)
    runs = {"latency": forward(net, x), "channels_last": forward(channels_last, x_last), "folded": forward(folded, x)}
    if name != REFERENCE:
        runs["r50"] = forward(build(REFERENCE).to(args.device).eval(), x)
    if args.compile:
        runs["compiled"] = forward(torch.compile(net), x)
    if (theirs := build_timm(name)) is not None:
        runs["timm"] = forward(theirs.to(args.device).eval(), x)
    seconds = medians(runs, repeats=args.repeats)
    row: dict[str, Any] = {
        "backbone": name,
        "size": list(x.shape[-2:]),
        "parameters": sum(p.numel() for p in net.parameters()),
        "images_per_s": x.shape[0] / seconds["latency"],
        "ratio_r50": seconds["latency"] / seconds.get("r50", seconds["latency"]),
        "fold_speedup": seconds["latency"] / seconds["folded"],
        "fold_error": error(runs["folded"](), runs["latency"]()),
        "peak_mb": peak_mb(runs["latency"], args.device),
    }
    row |= {f"{key}_ms": 1e3 * value for key, value in seconds.items()}
    return row | (measure_training(name, x, args) if args.train else {})


def measure_training(name: str, x: Tensor, args: argparse.Namespace) -> dict[str, float]:
    """Training step with and, where a backbone can, without kept activations."""
    runs = {"train": train_step(build(name).to(args.device), x)}
    if name not in RESNETS:
        runs["recompute"] = train_step(build(name, recompute=True).to(args.device), x)
    if name != REFERENCE:
        runs["r50_train"] = train_step(build(REFERENCE).to(args.device), x)
    seconds = medians(runs, repeats=args.repeats)
    figures = {f"{key}_ms": 1e3 * value for key, value in seconds.items()}
    return figures | {f"{key}_peak_mb": peak_mb(run, args.device) for key, run in runs.items() if key != "r50_train"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=known_models(), default=known_models(), metavar="NAME")
    parser.add_argument("--size", type=int, nargs=2, action="append", metavar=("HEIGHT", "WIDTH"), help="repeatable")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--train", action="store_true", help="also time training steps, with and without recomputing")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    print(f"{'backbone':18} {'size':>10}  " + " ".join(f"{column:>16}" for column in COLUMNS))
    rows = []
    for height, width in args.size or [[320, 320]]:
        x = torch.rand(args.batch, 3, height, width, device=args.device)
        for name in args.models:
            row = measure(name, x, args)
            rows.append(row)
            cells = " ".join(f"{row[c]:16.2f}" if c in row else " " * 15 + "-" for c in COLUMNS)
            print(f"{name:18} {height:>5}x{width:<5} {cells}", flush=True)
    if args.json:
        write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
