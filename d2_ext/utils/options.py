"""Command lines that name the option which was probably meant."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from d2_ext.errors import did_you_mean

__all__ = ["suggest_options"]


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
