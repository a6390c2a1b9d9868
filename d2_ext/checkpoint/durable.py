"""Checkpoint files that are there wholly or not at all, and a check that they still are."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from d2_ext.errors import CheckpointError, TrainingError, is_out_of_memory
from d2_ext.files import naming, replacing

import torch


def write_durably(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that is whole and on the disk, or not there.

    Args:
        path: the file.
        write: gets the open temporary file.

    Raises:
        TrainingError: if the disk is full or the folder cannot be written; ``path`` is as it was before.
    """
    try:
        with replacing(path, durable=True) as temporary, open(temporary, "wb") as file:
            write(file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if "DataLoader worker" in str(error):  # torch raises the death of a worker wherever the process is
            raise
        raise TrainingError(f"{path} could not be written: {_reason(error, path.parent)}.") from error


def save_durably(content: Any, path: Path) -> None:
    """``torch.save`` through :func:`write_durably`."""
    write_durably(path, lambda file: torch.save(content, file))


def verify_archive(filename: str) -> None:
    """Compare the content of a file of ``torch.save`` with the checksums in it, which ``torch.load`` does not.

    Files in torch's old format, which is no archive, have no checksums and are passed over.

    Raises:
        CheckpointError: naming the file, if it is cut off, a part of it has changed, or it would unpack to more than
            its own size, as a zip bomb does.
        OSError: naming the file, if the system does not let it be read.
    """
    with open(filename, "rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(filename) as archive:
            # Before anything is unpacked: what torch has written is stored as it is, each byte once.
            parts = archive.infolist()
            size, total = os.path.getsize(filename), sum(part.file_size for part in parts)
            packed = next((part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED), "")
            if packed or total > size:
                reason = f"its part {packed} is compressed" if packed else "its parts overlap"
                raise CheckpointError(
                    f"Checkpoint {filename} was not loaded: {reason} ({size} bytes unpack to {total}), which "
                    "torch.save never does. Get the file from a source you trust."
                )
            broken = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged directory raises whatever zipfile happens to meet
        raise_unless_damaged(error, filename)
        raise CheckpointError(
            f"Checkpoint {filename} was not loaded: it is cut off or damaged ({error or type(error).__name__}). Use "
            "the one before it, or get the file again."
        ) from error
    if broken is not None:
        raise CheckpointError(
            f"Checkpoint {filename} was not loaded: it is damaged, its part {broken} does not match its checksum. Use "
            "the one before it, or get the file again."
        )


def raise_unless_damaged(error: Exception, filename: str) -> None:
    """Raise what says nothing about the content of a checkpoint that was being read: the file may well be whole.

    Raises:
        CheckpointError: memory ran out.
        OSError: naming the file: the disk, its mode or the number of open files did not let it be read.
    """
    if is_out_of_memory(error):
        raise CheckpointError(f"Checkpoint {filename} was not loaded: memory ran out. Free some.") from error
    # EINVAL: a damaged directory of an archive points to a place before its start.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        with naming(filename):
            raise error


def _reason(error: Exception, folder: Path) -> str:
    """The error in words; torch hides a full disk behind an internal assertion."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    left = shutil.disk_usage(folder).free / 2**20
    return f"{str(error).partition(chr(10))[0]} ({left:.0f} MiB are free)"
