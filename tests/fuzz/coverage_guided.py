"""Fuzz the readers of text, json, xml, YAML and pickles, guided by the branches they take (atheris).

A finding is written to the current folder as crash-<hash>, and printed with its traceback; exit code 1. With the
environment variable D2_EXT_FIGURES naming a file, a line for the page on reliability is appended to it.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

MAX_BYTES = 2000
INSTRUMENTED = (
    "d2_ext.data",
    "d2_ext.checkpoint",
    "d2_ext.visualization.mask_ratios",
    "d2_ext.files",
    "json",
    "yaml",
)
EXAMPLES = """examples:
  all readers, ten seconds each:
    python tests/fuzz/coverage_guided.py --seconds 10
  one reader for five minutes:
    python tests/fuzz/coverage_guided.py --seconds 300 --target coco_json
  the figures of docs/reliability.md, about twelve minutes:
    D2_EXT_FIGURES=new.jsonl python tests/fuzz/coverage_guided.py --seconds 60
    python dev/make_reliability_page.py --figures new.jsonl
"""


def fuzz(name: str, seconds: int, counts: object, folder: Path) -> None:
    """Run one target in this process, which ends with it: its corpus in ``folder``, its calls in ``counts``."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from fuzz.targets import TARGETS, run

    logging.getLogger("d2_ext").setLevel(logging.ERROR)  # what the readers drop would be a flood
    target, seeds = TARGETS[name]
    calls = 0

    def one(data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls % 100 == 1:
            counts.value = calls
        run(target, data)

    corpus = folder / name
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        "-timeout=600",  # of a call; a machine under load stops for minutes, a hang is for ever
        "-verbosity=0",
        "-print_final_stats=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def run_targets(names: Sequence[str], seconds: int) -> dict[str, tuple[int, int]]:
    """Exit code and number of calls of each target, each in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    results = {}
    with tempfile.TemporaryDirectory(prefix="d2_ext_corpus_") as folder:  # the processes end without cleaning up
        for name in names:
            counts = spawn.Value("q", 0)
            process = spawn.Process(target=fuzz, args=(name, seconds, counts, Path(folder)))
            process.start()
            process.join()
            results[name] = (process.exitcode or 0, counts.value)
    return results


def write_figures(results: Mapping[str, tuple[int, int]], seconds: int) -> None:
    """Append a line to the file that D2_EXT_FIGURES names; calls that ended in a finding did not pass."""
    path = os.environ.get("D2_EXT_FIGURES")
    if not path:
        return
    findings = sum(code != 0 for code, _ in results.values())
    calls = sum(count for _, count in results.values())
    figures = {"findings": findings, "seconds each": seconds, **{name: count for name, (_, count) in results.items()}}
    line = {
        "promise": "Coverage-guided fuzzing of the readers of text, json, xml, YAML and pickles finds nothing",
        "test": f"python tests/fuzz/coverage_guided.py --seconds {seconds}",
        "cases": calls,
        "passed": calls - findings,
        "figures": figures,
    }
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=30, help="of each target (%(default)s)")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="may be repeated; all if not given")
    args = parser.parse_args(argv)
    results = run_targets(args.target or sorted(TARGETS), args.seconds)
    for name, (code, calls) in results.items():
        sys.stdout.write(f"{name}: {calls} calls, {'no finding' if code == 0 else f'FOUND SOMETHING (exit {code})'}\n")
    write_figures(results, args.seconds)
    return int(any(code for code, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
