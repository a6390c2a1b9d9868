"""Fuzz the readers of text, json, YAML and pickles, guided by the branches they take (atheris).

    python tests/fuzz/coverage_guided.py --seconds 60 --target coco_json

A finding is written to the current folder as crash-<hash>, and printed with its traceback; exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

MAX_BYTES = 2000
EXAMPLES = """examples:
  all readers, ten seconds each:
    python tests/fuzz/coverage_guided.py --seconds 10
  one reader for five minutes:
    python tests/fuzz/coverage_guided.py --seconds 300 --target coco_json
"""


def fuzz(name: str, seconds: int, counts: object) -> None:
    """Run one target in this process, which ends with it; the number of calls is put into ``counts``."""
    import atheris

    with atheris.instrument_imports(include=["d2_ext.data", "d2_ext.checkpoint.safe", "json", "yaml"]):
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

    corpus = Path(f"/tmp/d2_ext_corpus_{name}_{time.time_ns()}")
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        "-timeout=10",
        "-verbosity=0",
        "-print_final_stats=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def run_targets(names: Sequence[str], seconds: int) -> dict[str, tuple[int, int]]:
    """Exit code and number of calls of each target, each in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    results = {}
    for name in names:
        counts = spawn.Value("q", 0)
        process = spawn.Process(target=fuzz, args=(name, seconds, counts))
        process.start()
        process.join()
        results[name] = (process.exitcode or 0, counts.value)
    return results


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
    return int(any(code for code, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
