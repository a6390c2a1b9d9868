"""Hold the stand-in's text against the bounds that it keeps to: how like Detectron2's source its own may be.

    python likeness.py --project d2_ext/_standin --refs CHECKOUT/detectron2 --pairs --json scores.json
    python dev/check_likeness.py scores.json

Exit codes: 0 within the bounds, 1 above one of them.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LONG = 60  # tokens from which on a function of the same name says something
BOUNDS = {
    "share of function tokens in functions alike >= 0.8": 0.03,
    "median likeness of long functions of the same name": 0.48,
    "share of long functions of the same name alike >= 0.7": 0.12,
    "share of private names that Detectron2 has, too": 0.10,
    "equal sentences": 0,
}


def measure(scores: dict[str, Any]) -> dict[str, float]:
    """The measured values, by the names of ``BOUNDS``.

    Args:
        scores: what the likeness script wrote with ``--pairs``: per file its functions, each beside those it is most
            like (``masked`` is the share of tokens that agree with local names masked).
    """
    total = next(iter(scores["totals"].values()))
    pairs = [pair for file in scores["files"].values() for pair in file["pairs"]]
    same_name = list(_best(pair for pair in pairs if pair["function"] == pair["ref_function"]))
    values = [
        total["pair0.8"] / total["function_tokens"],
        statistics.median(same_name) if same_name else 0.0,
        sum(value >= 0.7 for value in same_name) / max(len(same_name), 1),
        total["private_shared"] / max(total["private"], 1),
        total["prose_equal"],
    ]
    return dict(zip(BOUNDS, values, strict=True))


def _best(pairs: Iterable[dict[str, Any]]) -> Iterable[float]:
    """Of each long function its likeness to the most similar one."""
    best: dict[tuple[str, int], float] = {}
    for pair in pairs:
        if min(pair["tokens"]) >= LONG:
            key = (pair["function"], pair["line"])
            best[key] = max(best.get(key, 0.0), pair["masked"])
    return best.values()


def main(argv: list[str]) -> int:
    """Print the measured values and say which are above their bound."""
    measured = measure(json.loads(Path(argv[0]).read_text()))
    failed = [name for name, value in measured.items() if value > BOUNDS[name]]
    for name, value in measured.items():
        print(f"{value:7.3f}  (at most {BOUNDS[name]:g})  {name}{'  <-- too much' if name in failed else ''}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
