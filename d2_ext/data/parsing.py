"""What all readers of annotations need: lines of a text file, and numbers that are numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from d2_ext.errors import DatasetError

__all__ = ["is_finite", "read_lines"]


def read_lines(path: Path) -> list[str]:
    """Lines of a text file in UTF-8.

    Raises:
        DatasetError: it cannot be read, or holds other bytes.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DatasetError(f"'{path}' cannot be read: {error.strerror}. Restore it.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"'{path}' is no text in UTF-8 ({error}). Get the file again, or convert it.") from error


def is_finite(value: Any) -> bool:
    """Whether a value from a file is a number that a float can hold; True and False are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
