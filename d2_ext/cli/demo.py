"""A small local web page: drop an image, choose a checkpoint, a score threshold and the mask overlay.

It is served to this machine alone (127.0.0.1) unless --host says otherwise, works without a network and sends nothing
anywhere. It offers the models of the package and the checkpoints of the run folders below --root, and no other file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from d2_ext.cli.command import command_parser, number_in, run_command
from d2_ext.demo.checkpoints import list_checkpoints
from d2_ext.demo.page import Demo, build_page, launch_options

EXAMPLES = """examples:
  all runs below output/, at http://127.0.0.1:7860 (needs: pip install -e ".[demo]"):
    python tools/demo.py
  one run, another port, on the CPU:
    python tools/demo.py --root output/quickstart --port 8000 --device cpu

exit codes: 0 stopped with Ctrl-C, 1 the port is taken, 2 wrong usage
"""
LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--root", type=Path, help="folder with run folders (output, if it is there)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve (%(default)s: this machine alone)")
    parser.add_argument("--port", type=number_in(int, 1, 65535), default=7860, help="(%(default)s)")
    parser.add_argument("--device", help="cpu or cuda (the config's own)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(argument_parser(), serve, argv)


def serve(args: argparse.Namespace) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: there is no checkpoint, or Gradio is not installed.
        OSError: the port is taken.
    """
    checkpoints = list_checkpoints(args.root)
    page = build_page(Demo(checkpoints, args.device))
    if args.host not in LOCAL_HOSTS:
        print(f"warning: {args.host} is open to others, who can upload images without a password.", file=sys.stderr)
    try:
        page.launch(**launch_options(args.host, args.port), prevent_thread_lock=True)
    except OSError as error:
        raise OSError(f"cannot serve {args.host}:{args.port} ({error}). Choose another --port.") from error
    print(f"{len(checkpoints)} models at http://{args.host}:{args.port} (Ctrl-C stops)", flush=True)
    page.block_thread()
