"""One run at a time in a run folder: a file that names the host and the process that writes there."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError
from d2_ext.files import NO_LINKS, naming, remove_temporaries, temporary_beside

__all__ = ["LOCK", "locked"]

logger = logging.getLogger(__name__)
LOCK = ".lock"
UNKNOWN = "unknown"  # where it cannot be asked whether a process is there


@contextlib.contextmanager
def locked(output_dir: str) -> Iterator[None]:
    """Context in which no other run starts in ``OUTPUT_DIR``; the folder is made if it is not there.

    A lock whose process is gone (killed, or from before the machine was started anew) is stale and replaced. Whether a
    process of another host still lives cannot be seen from here, so its lock always counts; on Windows every lock does.

    Args:
        output_dir: of the run; without one, or with an address, nothing is locked.

    Raises:
        ConfigError: another run has the folder.
    """
    if not output_dir or "://" in output_dir:
        yield
        return
    folder = Path(output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lock, own = folder / LOCK, {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_of(os.getpid())}
    while True:
        try:
            _take(lock, own)
            break
        except FileExistsError:
            _remove_stale(lock, folder)
    try:
        for place in (folder, *folder.glob("inference/**")):
            remove_temporaries(place)  # nobody else writes here, so they are of processes that were killed
        yield
    finally:
        if _read(lock) == own:
            lock.unlink()


def _take(lock: Path, own: dict[str, Any]) -> None:
    """Make the lock in one step, with its content; FileExistsError if there is one."""
    temporary = temporary_beside(lock)
    try:
        with naming(lock):
            temporary.write_text(json.dumps(own), encoding="utf-8")
        try:
            os.link(temporary, lock)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise  # without links a lock may be seen half made
            with naming(lock), open(lock, "x", encoding="utf-8") as file:
                json.dump(own, file)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _remove_stale(lock: Path, folder: Path) -> None:
    """Take a lock away whose process is gone.

    Raises:
        ConfigError: it is not, as far as can be seen from here.
    """
    owner = _read(lock)
    if owner is None:
        return  # it was given back just now
    host, pid = owner.get("host"), owner.get("pid")
    is_here = host == socket.gethostname()
    if not (is_here and isinstance(pid, int)) or _start_of(pid) == owner.get("started", ""):
        is_sure = is_here and pid and owner.get("started") != UNKNOWN
        advice = "" if is_sure else f" If that run is over, remove {lock}."
        raise ConfigError(
            f"OUTPUT_DIR {folder} is in use by another run (process {pid} on {host}). Wait for its end, or name "
            f"another folder.{advice}"
        )
    logger.warning("%s of process %s is stale: that process is gone.", lock, pid)
    taken = lock.with_name(f"{LOCK}.{os.getpid()}.stale")
    with contextlib.suppress(FileNotFoundError):  # another run was faster
        os.rename(lock, taken)
        if _read(taken) != owner:  # the other run has put its own lock there meanwhile: that one is not stale
            os.rename(taken, lock)
        else:
            taken.unlink()


def _read(lock: Path) -> dict[str, Any] | None:
    """What a lock says; None if there is none. One that is no lock of ours belongs to nobody who can be asked."""
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        content = None
    return content if isinstance(content, dict) else {}


def _start_of(pid: int) -> str | None:
    """What tells a process from a later one with its number: when it was started. None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] == "Z" else f"{boot} {fields[19]}"  # a zombie has ended
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    if sys.platform == "win32":  # where signal 0 is no question but Ctrl-C, and reaches the other run
        return UNKNOWN
    try:  # without /proc the number has to do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
