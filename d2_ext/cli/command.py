"""The frame of every command: options with hints, one message and one exit code for what a user can correct.

A command is a module with ``argument_parser()`` and ``main(argv)``, which returns the exit code: 0 done, 1 data,
weights or files cannot be used, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn, TypeVar

from d2_ext.errors import ConfigError, did_you_mean
from d2_ext.runs.user_errors import explain

__all__ = [
    "add_import",
    "add_overrides",
    "command_parser",
    "import_modules",
    "number_in",
    "run_command",
    "run_work",
    "suggest_options",
]

Number = TypeVar("Number", int, float)


def command_parser(description: str | None, examples: str) -> argparse.ArgumentParser:
    """A parser whose help ends with examples.

    Args:
        description: the docstring of the command's module.
        examples: as they are printed, exit codes included.
    """
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_import(parser)
    return suggest_options(parser)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add ``--import MODULE``, for classes and data sets that a user's own module registers."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers own detectors, backbones or data sets; it may lie in the current folder",
    )


def import_modules(names: Sequence[str]) -> None:
    """Import what ``--import`` names, once; the current folder is searched after the installed modules.

    Raises:
        ConfigError: there is no such module. Errors inside of it are not touched.
    """
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and misses another one
            raise ConfigError(
                f"--import {name}: there is no such module, neither installed nor in {os.getcwd()}. Expected a name as "
                "in Python, such as my_detector for my_detector.py."
            ) from error


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--opts KEY VALUE ...``, which takes the rest of the command line."""
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config changes")


def run_command(
    parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], int | None], argv: Sequence[str] | None
) -> int:
    """Parse a command line and do what it says; an error that the user can correct is printed without traceback.

    Args:
        parser: of the command.
        work: gets the parsed arguments; returns the exit code, None for 0.
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit code; 143 after SIGTERM, which leaves no half-written file.
    """
    return run_work(work, parser.parse_args(argv))


def run_work(work: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """The part of :func:`run_command` behind the parsing."""
    try:
        import_modules(getattr(args, "imports", ()))
        with _terminated_in_order():
            return work(args) or 0
    except Exception as error:
        code, message = explain(error)
        if code is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return code


@contextlib.contextmanager
def _terminated_in_order() -> Iterator[None]:
    """Context in which SIGTERM leaves as an exception does, so that what is half written is removed."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        print("Stopped by SIGTERM.", file=sys.stderr)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def number_in(kind: type[Number], least: float, most: float = math.inf) -> Callable[[str], Number]:
    """Type of an option of ``argparse`` that takes numbers of a range, its ends among them.

    Args:
        kind: int or float.
        least, most: the range; without ``most`` it is open, but infinity is no number.

    Example:
        >>> number_in(int, 1)("12")
        12
    """
    name = "whole number" if kind is int else "number"
    expected = f"expected a {name} " + (f"from {least}" if most == math.inf else f"from {least} to {most}")

    def convert(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: {expected}") from None
        if not least <= value <= most or value == math.inf:
            raise argparse.ArgumentTypeError(f"{text!r}: {expected}")
        return value

    return convert


def suggest_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Let the error for an unknown option name the nearest known one.

    Returns:
        The same parser.
    """
    error = parser.error

    def error_with_hint(message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            known = [o for action in parser._actions for o in action.option_strings if o.startswith("--")]
            message += f". {did_you_mean(unknown.group(1), known, max_listed=0)}".rstrip(". ")
        error(message)

    parser.error = error_with_hint  # type: ignore[method-assign]
    return parser
