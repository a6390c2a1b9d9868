"""Command lines that name the option which was probably meant, and the values that an option takes."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn, TypeVar

from d2_ext.errors import did_you_mean

__all__ = ["number_in", "suggest_options"]

Number = TypeVar("Number", int, float)


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
