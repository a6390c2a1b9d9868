"""Files from strangers, read safely, and files of our own, written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError

import yaml

__all__ = ["read_yaml", "remove_temporaries", "replacing"]


def read_yaml(path: Path, refusal: type[ValueError] = ConfigError) -> Any:
    """Read the plain values of a YAML file; nothing of it is executed.

    Args:
        path: of the file, in UTF-8.
        refusal: the error to raise.

    Raises:
        ConfigError: (or ``refusal``) it cannot be read, or is not a safe, well-formed YAML file.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise refusal(f"{path} cannot be read: {error.strerror}. Restore it, or name another file.") from error
    except Exception as error:  # besides YAMLError, what PyYAML's conversions of tags, dates and numbers happen to meet
        reason = error if isinstance(error, yaml.YAMLError | UnicodeError) else f"{type(error).__name__}: {error}"
        in_one_line = " ".join(str(reason).replace('in "<unicode string>", ', "in ").split())
        raise refusal(f"{path} is not a safe, well-formed YAML file: {in_one_line}") from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Context that gives a temporary path beside ``path``, with its suffix; at the end it takes the place of ``path``.

    The folder is made if it is not there. After an exception nothing is left, and ``path`` is as before.

    Args:
        path: of the file to write.
        durable: force the file and its name to the disk, so that they survive a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what a process that was killed inside :func:`replacing` has left in a folder."""
    for path in folder.glob(".*.tmp*"):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
