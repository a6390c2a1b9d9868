"""The errors a user of d2_ext can cause, and near-name suggestions for their messages.

Every message has three parts: what was wrong with which value, what was expected, what to do.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class ConfigError(ValueError):
    """A config value or command line argument cannot work."""


class DatasetError(ValueError):
    """A data set folder, annotation file or image cannot be used."""


class CheckpointError(ValueError):
    """A checkpoint file cannot be read, is unsafe to read, or does not fit the model."""


class TrainingError(RuntimeError):
    """A run cannot go on: a loss that is not finite, a full disk, a process that died."""


class ExportError(ValueError):
    """A model cannot be exported, or the exported file does not detect what the model does."""


_TORCH_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_OPENCV_MEMORY = "(-4:Insufficient memory)"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's and numpy's MemoryError, ENOMEM, or what torch and OpenCV raise."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error)
    if isinstance(error, RuntimeError):
        return any(words in text for words in _TORCH_MEMORY)
    return isinstance(error, MemoryError) or (type(error).__module__ == "cv2" and _OPENCV_MEMORY in text)


def raise_if_handles_ran_out(error: BaseException) -> None:
    """Raise an error again that means too many open files: where any other one means a broken file."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise error


def did_you_mean(name: str, known: Iterable[str], *, max_listed: int = 12) -> str:
    """Describe the known names nearest to an unknown one, for the end of an error message.

    Args:
        name: what the user wrote.
        known: the names that exist.
        max_listed: the whole list is added only if it is at most this long.

    Returns:
        One or two sentences; empty if nothing is known.

    Example:
        >>> did_you_mean("coco_trian", ["coco_train", "coco_val"])
        "Did you mean 'coco_train'? Known: coco_train, coco_val."
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    parts = [f"Did you mean '{near[0]}'?"] if near else []
    if names and len(names) <= max_listed:
        parts.append(f"Known: {', '.join(names)}.")
    return " ".join(parts)


def install_hint(extra: str) -> str:
    """How to get the packages of an extra, for the end of an error message; the same words everywhere.

    Example:
        >>> install_hint("demo")
        "Install it in the clone of d2_ext with: pip install -e '.[demo]'"
    """
    return f"Install it in the clone of d2_ext with: pip install -e '.[{extra}]'"


def check_choice(key: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of the choices.

    Raises:
        ConfigError: it is not.
    """
    if value not in choices:
        raise ConfigError(f"{key}: {value!r} is not known. {did_you_mean(str(value), choices)}")
    return value
