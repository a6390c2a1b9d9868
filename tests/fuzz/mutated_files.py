"""Change files of each binary format a few bytes at a time, and read every one of them in a child process.

Each must give a value or one of our errors. A runtime or decoder that crashes takes the child along, not this program:
the file counts as crashed, and another child goes on behind it. More than a minute of CPU time counts as no end.
A finding (another error, or no end) is printed; exit code 1. With the environment variable D2_EXT_FIGURES naming a
file, a line for the page on reliability is appended to it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

EXAMPLES = """examples:
  all formats, 200 files each:
    python tests/fuzz/mutated_files.py --count 200
  the figures of docs/reliability.md:
    D2_EXT_FIGURES=new.jsonl python tests/fuzz/mutated_files.py
    python dev/make_reliability_page.py --figures new.jsonl
"""
CPU_SECONDS, MORE_BYTES = 60, 4_000_000_000  # of one file; above what the child has when it begins
NUMBERS = (0, 1, -1, 127, 128, 255, 2**15, 2**16, 2**31 - 1, -(2**31), 2**31, 2**32, 2**63 - 1, -(2**63))
IMAGES = ("jpg", "png", "bmp", "tif", "webp", "gif", "ppm")
FORMATS = ("onnx", "xml", "pt2", "pth", "safetensors", *IMAGES)
PRELOADED = ["d2_ext.export", "torch.export", "onnx", "onnxruntime", "openvino", "PIL.Image", "helpers.strange_files"]
NO_END = f"crashed ({signal.SIGPROF.name})"
SCRIPT = "tests/fuzz/mutated_files.py"
PROMISE = "Changed files of each binary format: a value, an error of ours, or a crash of a decoder in its own process"


def write_honest(path: Path) -> None:
    """Write a small file of the format that its suffix names, and what belongs beside it."""
    import numpy as np
    import torch
    from PIL import Image

    weights = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.zeros(3), "steps": torch.tensor(7)}
    if path.suffix in (".onnx", ".xml"):
        import onnx

        from helpers.strange_files import TEXTS, small_detector

        onnx.save(small_detector(), path.with_suffix(".onnx"))
        if path.suffix == ".xml":
            from d2_ext.export.metadata import METADATA_NODE

            import openvino

            model = openvino.convert_model(str(path.with_suffix(".onnx")))
            for key, text in TEXTS.items():
                model.set_rt_info(text, [METADATA_NODE, key])
            openvino.save_model(model, str(path))
    elif path.suffix == ".pt2":
        from helpers.strange_files import TEXTS

        program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
        torch.export.save(program, path, extra_files={"d2_ext.json": json.dumps(TEXTS)})
    elif path.suffix == ".pth":
        torch.save({"model": weights, "iteration": 3}, path)
    elif path.suffix == ".safetensors":
        from d2_ext.checkpoint.safetensors_file import write_safetensors

        write_safetensors(path, weights, class_names=["a", "b"])
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)).save(path)


def read(path: Path) -> None:
    """Read a file as the program does: a value, or one of our errors. A graph detects on an image, too."""
    import numpy as np

    if path.suffix in (".onnx", ".xml"):
        from d2_ext.export import load_runtime, read_metadata

        read_metadata(path)
        load_runtime(path, threads=1)(np.zeros((1, 3, 8, 8), np.uint8))
    elif path.suffix == ".pt2":
        from d2_ext.export import read_metadata

        read_metadata(path)
    elif path.suffix in (".pth", ".safetensors"):
        from d2_ext.checkpoint.safe import read_checkpoint

        read_checkpoint(str(path))
    else:
        from d2_ext.images import read_image

        read_image(path)


def mutated(content: bytes, seed: str) -> bytes:
    """The content with one to four changes that follow from the seed."""
    draw = random.Random(seed)
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(changed) + 1)
        length = min(draw.choice((1, 2, 4, 8, 64, 512)), len(changed) - place)
        kind = draw.randrange(7)
        if kind == 0 and length:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[place : place + length] = draw.randbytes(length)
        elif kind == 2:
            order = draw.choice("<>")
            number = struct.pack(f"{order}q", draw.choice(NUMBERS))
            size = draw.choice((1, 2, 4, 8))
            changed[place : place + size] = number[:size] if order == "<" else number[-size:]
        elif kind == 3:
            del changed[place : place + length]
        elif kind == 4:
            changed[place:place] = changed[place : place + length]
        elif kind == 5:
            source = draw.randrange(len(changed) + 1)
            changed[place : place + length] = changed[source : source + length]
        elif draw.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def read_many(name: str, numbers: range, pipe: Connection) -> None:
    """In a child: read one changed file after the other, and tell how each ended."""
    for printed in (1, 2):  # decoders and runtimes complain there
        os.dup2(os.open(os.devnull, os.O_WRONLY), printed)
    from d2_ext.errors import CheckpointError, ConfigError, DatasetError, ExportError

    with tempfile.TemporaryDirectory(prefix="d2_ext_mutated_") as folder:
        path = Path(folder) / f"a.{name}"
        write_honest(path)
        read(path)  # what loads lazily, loads here
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, resource.RLIM_INFINITY))
        honest = [(file, file.read_bytes()) for file in (path, path.with_suffix(".bin")) if file.is_file()]
        for number in numbers:
            changed, content = honest[-1 if number % 8 == 0 else 0]
            changed.write_bytes(mutated(content, f"{name} {number}"))
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            try:
                read(path)
                ended = "read"
            except (CheckpointError, ConfigError, DatasetError, ExportError):
                ended = "refused"
            except BaseException as error:
                ended = f"{type(error).__name__}: {error}"
            signal.setitimer(signal.ITIMER_PROF, 0)
            changed.write_bytes(content)
            pipe.send((number, ended))


def read_mutated(name: str, count: int, work: Callable[[str, range, Connection], None] = read_many) -> dict[int, str]:
    """Read ``count`` changed files of a format in child processes.

    Args:
        name: of the format.
        count: of files.
        work: of a child: :func:`read_many`.

    Returns:
        How each ended, by its number: "read", "refused", "crashed (SIGNAL)", or an error that is not ours.
    """
    context = multiprocessing.get_context("forkserver")
    ends: dict[int, str] = {}
    while len(ends) < count:
        receiving, sending = context.Pipe(duplex=False)
        child = context.Process(target=work, args=(name, range(len(ends), count), sending))
        child.start()
        sending.close()
        try:
            while True:
                number, ended = receiving.recv()
                ends[number] = ended
        except EOFError:
            child.join()
        if len(ends) < count:
            if not child.exitcode or child.exitcode > 0:
                raise RuntimeError(f"{name}: the child ended with {child.exitcode} at file {len(ends)}")
            ends[len(ends)] = f"crashed ({signal.Signals(-child.exitcode).name})"
    return ends


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    from fuzz.figures import append_figures

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="files of each format (%(default)s)")
    parser.add_argument("--format", choices=FORMATS, action="append", help="may be repeated; all if not given")
    args = parser.parse_args(argv)
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    begun, findings, figures = time.monotonic(), 0, {}
    for name in args.format or FORMATS:
        ends = read_mutated(name, args.count)
        found = {number: end for number, end in ends.items() if not end.startswith(("read", "refused", "crashed"))}
        found |= {number: end for number, end in ends.items() if end == NO_END}
        for number, end in found.items():
            sys.stdout.write(f"{name} {number}: {end}\n")
        findings += len(found)
        counts = Counter(end.partition(" ")[0] for number, end in ends.items() if number not in found)
        figures[name] = dict(sorted(counts.items()))
        sys.stdout.write(f"{name}: {figures[name]}\n")
        sys.stdout.flush()
    cases = args.count * len(figures)
    figures = {"files each": args.count, **figures}
    append_figures(PROMISE, f"python {SCRIPT}", cases, findings, time.monotonic() - begun, figures)
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
