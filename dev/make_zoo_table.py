"""Write MODEL_ZOO.md from the published figures and our own; that file is not edited by hand.

Read are

- ``results/published.json``: a list of rows of figures that others published,
- ``results/runs/*.json``: one row a file for each training of ours,
- ``results/bench/backbones*.json``: what ``benchmarks/backbones.py --json`` wrote,
- ``results/bench/peers*.json``: of ``benchmarks/peers.py``, for the latencies of our light detectors.

A row of figures has ``table`` (its section), ``model``, ``recipe`` (path of the YAML, or null), ``data`` (what was
evaluated on), ``metrics`` (name to number) and ``source``; rows of ours have ``commit``, ``date`` and ``machine``
instead of ``source``. Every figure in the file is marked "paper" or "ours".
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2_ext.cli.command import command_parser
from d2_ext.modeling.backbone import MOGANET_SPECS, VOVNET_SPECS, DetNet, MogaNet, VoVNet

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("paper", "ours")
HEADER = """# Model zoo

Made by `python dev/make_zoo_table.py` from `results/`; edits by hand are lost.
Figures marked *paper* were published by the authors of the method (the source stands beside them) and were **not**
reproduced here; figures marked *ours* were measured with this code.
"""
EXAMPLES = """examples:
  python dev/make_zoo_table.py           # write MODEL_ZOO.md
  python dev/make_zoo_table.py --check   # exit status 1 if it is not up to date
"""


def load_rows(results: Path) -> list[dict[str, Any]]:
    """All rows of figures below a folder of results, each with its ``mark``."""
    published = json.loads((results / "published.json").read_text())
    rows = [{**row, "mark": "paper"} for row in published]
    for path in sorted((results / "runs").glob("*.json")):
        row = json.loads(path.read_text())
        source = f"commit {row['commit']}, {row['date']}, {row['machine']}"
        rows.append({**row, "mark": "ours", "source": source})
    return rows


def zoo(results: Path) -> str:
    """The whole page."""
    rows = load_rows(results)
    parts = [HEADER]
    for table in dict.fromkeys(row["table"] for row in rows):
        of_table = [row for row in rows if row["table"] == table]
        for data in dict.fromkeys(row["data"] for row in of_table):
            parts.append(f"## {table}: {data}\n\n" + figures([row for row in of_table if row["data"] == data]))
    parts.append("## Sizes of the backbones\n\n" + sizes())
    parts += [
        f"## Speed of the light detectors: {path.stem}\n\n" + light(path)
        for path in sorted((results / "bench").glob("peers*.json"))
        if "runtimes_ms" in json.loads(path.read_text())["rows"][0]
    ]
    parts += [
        f"## Speed: {path.stem}\n\n" + speed(path) for path in sorted((results / "bench").glob("backbones*.json"))
    ]
    return "\n".join(parts)


def figures(rows: list[dict[str, Any]]) -> str:
    """Table of the metrics of models on one data set."""
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    lines = [
        [
            f"[{row['model']}]({row['recipe']})" if row.get("recipe") else row["model"],
            *(f"{row['metrics'][m]:.1f}" if m in row["metrics"] else "" for m in metrics),
            row["mark"],
            row["source"],
        ]
        for row in rows
    ]
    return table(["model", *metrics, "whose", "source"], lines)


@functools.cache  # the networks do not depend on the results
def sizes() -> str:
    """Table of parameters and multiply-adds, counted on the networks themselves."""
    with torch.device("meta"):
        nets: dict[str, nn.Module] = {f"VoVNet {name}": VoVNet(body=name, norm="BN") for name in VOVNET_SPECS}
        nets |= {"DetNet-59": DetNet(norm="BN"), "DetNet-59 narrow": DetNet(norm="BN", narrow=True)}
        nets |= {f"MogaNet {name}": MogaNet(arch=name) for name in MOGANET_SPECS}
    lines = []
    for name, net in nets.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net.eval()(torch.empty(1, 3, 224, 224, device="meta"))
        count = sum(p.numel() for p in net.parameters())
        lines.append([name, f"{count / 1e6:.2f}", f"{counter.get_total_flops() / 2e9:.3f}", "ours"])
    return table(["trunk", "parameters [M]", "multiply-adds at 224x224 [G]", "whose"], lines)


def speed(path: Path) -> str:
    """Table of one run of the benchmark."""
    content = json.loads(path.read_text())
    columns = {
        "latency [ms]": "latency_ms",
        "over R-50": "ratio_r50",
        "folded [ms]": "folded_ms",
        "folding speeds up": "fold_speedup",
        "peak [MB]": "peak_mb",
        "timm's [ms]": "timm_ms",
        "training step [ms]": "train_ms",
        "training peak [MB]": "train_peak_mb",
        "with RECOMPUTE [MB]": "recompute_peak_mb",
    }
    lines = [
        [
            row["backbone"],
            "x".join(map(str, row["size"])),
            *(f"{row[key]:.2f}" if key in row else "" for key in columns.values()),
            "ours",
        ]
        for row in content["rows"]
    ]
    where = f"{content['machine']}; {content['date']}, commit {content['commit']}.\n\n"
    return where + table(["backbone", "image", *columns, "whose"], lines)


def light(path: Path) -> str:
    """Table of our detectors in one run beside others (docs/peers.md)."""
    content = json.loads(path.read_text())
    ours = [row for row in content["rows"] if row["whose"] == "ours"]
    runtimes = list(dict.fromkeys(runtime for row in ours for runtime in row["runtimes_ms"]))
    lines = [
        [
            f"[{row['model']}]({row['recipe']})",
            "x".join(map(str, row["size"])),
            "" if row["active"] is None else str(row["active"]),
            *(f"{row[key]:.2f}" for key in ("parameters_M", "multiply_adds_G")),
            *(f"{row['runtimes_ms'][runtime]:.0f}" for runtime in runtimes),
            "ours",
        ]
        for row in ours
    ]
    where = f"{content['machine']}; {content['date']}, commit {content['commit']}.\n\n"
    counts = ["active [%]", "parameters [M]", "multiply-adds [G]"]
    return where + table(["recipe", "image", *counts, *(f"{name} [ms]" for name in runtimes), "whose"], lines)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--output", type=Path, default=ROOT / "MODEL_ZOO.md")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the page."""
    args = argument_parser().parse_args(argv)
    page = zoo(args.results)
    if args.check:
        current = args.output.read_text() if args.output.exists() else ""
        print(f"{args.output} is {'up to date' if current == page else 'not up to date: run dev/make_zoo_table.py'}")
        return int(current != page)
    args.output.write_text(page)
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
