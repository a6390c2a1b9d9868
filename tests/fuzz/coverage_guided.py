"""Fuzz the readers of text, json, xml, YAML and pickles, guided by the branches they take (atheris).

A finding is written to the current folder as crash-<hash>, and printed with its traceback; exit code 1. With the
environment variable D2_EXT_FIGURES naming a file, a line for the page on reliability is appended to it.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

MAX_BYTES = 2000
MOST_KEPT, LONGEST_KEPT = 25, 500  # inputs of a target, and their bytes
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
        from fuzz.targets import TARGETS, corpus, run

    logging.getLogger("d2_ext").setLevel(logging.ERROR)  # what the readers drop would be a flood
    target = TARGETS[name][0]
    calls = 0

    def one(data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls % 100 == 1:
            counts.value = calls
        run(target, data)

    inputs = folder / name
    inputs.mkdir()
    for number, seed in enumerate(corpus(name)):
        (inputs / f"seed{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        "-timeout=600",  # of a call; a machine under load stops for minutes, a hang is for ever
        "-verbosity=0",
        "-print_final_stats=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(inputs)], one)
    atheris.Fuzz()


def keep(folder: Path) -> None:
    """Add to the kept corpus what takes a step between two lines of the readers that no kept input takes."""
    from fuzz.targets import KEPT, TARGETS, corpus, run

    logging.getLogger("d2_ext").setLevel(logging.ERROR)
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    for inputs in sorted(folder.iterdir()):
        target = TARGETS[inputs.name][0]
        steps: set[tuple[str, int, int]] = set()
        for data in corpus(inputs.name):
            steps |= _steps(functools.partial(run, target, data))
        for data in sorted((path.read_bytes() for path in inputs.iterdir()), key=len):
            taken = _steps(functools.partial(run, target, data))
            if len(kept.get(inputs.name, ())) < MOST_KEPT and len(data) <= LONGEST_KEPT and taken - steps:
                kept.setdefault(inputs.name, []).append(data.decode("latin-1"))
                steps |= taken
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _steps(call: Callable[[], None]) -> set[tuple[str, int, int]]:
    """From which line to which a call goes, in the files of d2_ext."""
    found: set[tuple[str, int, int]] = set()

    def trace(frame: FrameType, event: str, _: object) -> Callable | None:
        if f"{os.sep}d2_ext{os.sep}" not in frame.f_code.co_filename:
            return None
        before = frame.f_lineno

        def line(frame: FrameType, event: str, _: object) -> Callable:
            nonlocal before
            found.add((frame.f_code.co_filename, before, frame.f_lineno))
            before = frame.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return found


def run_targets(names: Sequence[str], seconds: int, keeps: bool) -> dict[str, tuple[int, int]]:
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
        if keeps:
            keep(Path(folder))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    from fuzz.figures import append_figures
    from fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=30, help="of each target (%(default)s)")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append", help="may be repeated; all if not given")
    parser.add_argument("--keep", action="store_true", help="add what takes new branches to tests/fuzz/corpus.json")
    args = parser.parse_args(argv)
    results = run_targets(args.target or sorted(TARGETS), args.seconds, args.keep)
    for name, (code, calls) in results.items():
        sys.stdout.write(f"{name}: {calls} calls, {'no finding' if code == 0 else f'FOUND SOMETHING (exit {code})'}\n")
    append_figures(
        "Coverage-guided fuzzing of the readers of text, json, xml, YAML and pickles finds nothing",
        "python tests/fuzz/coverage_guided.py",
        sum(count for _, count in results.values()),
        sum(code != 0 for code, _ in results.values()),
        args.seconds * len(results),
        {"seconds each": args.seconds, **{name: count for name, (_, count) in results.items()}},
    )
    return int(any(code for code, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main())
