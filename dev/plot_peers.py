"""Draw accuracy over latency, ours and the peers: ``docs/images/peers.png``, from the results of two benchmarks.

Latency is of ``benchmarks/peers.py`` (an image of 800x1344 px, the masks of ours at 10 %), accuracy of
``benchmarks/peers_accuracy.py`` (HIT-UAV, equal time of training). A training is drawn if its detector was timed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from d2_ext.cli.command import command_parser, run_command
from d2_ext.errors import ConfigError

EXAMPLES = """examples:
  python dev/plot_peers.py
"""
ROOT = Path(__file__).resolve().parents[1]
# The recipes of HIT-UAV are detectors of the light family with other classes and data.
TIMED_AS = {
    "configs/HIT-UAV/fcos_sparse_V22_lite_FPN64.yaml": "fcos_sparse_s",
    "configs/HIT-UAV/fcos_V22_lite_FPN64.yaml": "fcos_s",
    "configs/HIT-UAV/fcos_sparse_V22_nano_FPN64.yaml": "fcos_sparse_n",
}


def points(times: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Name, ms and AP of each training whose detector was timed.

    Raises:
        ConfigError: there is none.
    """
    ms = {row["model"]: row["ms"] for row in times}
    timed = [(row, row.get("model") or TIMED_AS.get(row.get("recipe", ""), "")) for row in trained]
    found = [(row["training"], ms[model], row["AP"]) for row, model in timed if model in ms]
    if not found:
        raise ConfigError("No training's detector was timed: the two files have no model in common.")
    return found


def draw(path: Path, rows: Sequence[tuple[str, float, float]], data: str) -> None:
    """A point for each row, named in the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for marker, (name, ms, ap) in zip(cycle("osD^vP"), sorted(rows, key=lambda row: row[1])):
        color = "#7a7a7a" if name.startswith("yolo") else "#3b6fb6"
        axes.scatter(ms, ap, s=48, color=color, marker=marker, label=name)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.set_xlim(0, 1.2 * max(ms for _, ms, _ in rows))
    axes.set_ylim(0, 1.2 * max(ap for *_, ap in rows))
    axes.set_xlabel("ms an image of 800x1344 px, two threads")
    axes.set_ylabel(f"AP, {data}, %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=120)


def plot(args: argparse.Namespace) -> None:
    """Read both results, draw, and say what was drawn."""
    times, trained = (json.loads(path.read_text())["rows"] for path in (args.latency, args.accuracy))
    of_data = [row for row in trained if row["data"] == args.data]
    rows = points(times, of_data)
    draw(args.output, rows, args.data)
    for name, ms, ap in rows:
        print(f"{ms:6.0f} ms  {ap:5.1f} AP  {name}")
    print(f"wrote {args.output}")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    results = ROOT / "results" / "bench"
    parser.add_argument("--latency", type=Path, default=results / "peers_xeon.json", help="of benchmarks/peers.py")
    parser.add_argument("--accuracy", type=Path, default=results / "peers_accuracy.json", help="of peers_accuracy.py")
    parser.add_argument("--data", default="hit_uav_test", help="data set of the accuracies")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images/peers.png")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), plot, argv)


if __name__ == "__main__":
    raise SystemExit(main())
