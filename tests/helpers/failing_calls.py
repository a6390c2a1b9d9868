"""A shim between a process and the file system: the n-th call fails, or the process dies there.

As SQLite is tested: every call below a folder is counted, and a flow is run once for each of them. The shim is for
forked children, since Python's audit hooks stay for the life of a process. Calls of Python are seen, whichever library
makes them; native code that writes by itself (OpenCV's videos, OpenVINO) is not.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

# What a call can meet; "read" is an open for reading.
ERRORS: dict[str, tuple[str, ...]] = {
    "open": ("ENOSPC", "EACCES", "EMFILE", "EROFS", "EIO"),
    "write": ("ENOSPC", "EIO"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EACCES", "EROFS", "EIO", "ENOSPC"),
    "mkdir": ("ENOSPC", "EACCES", "EROFS", "EIO"),
    "unlink": ("EACCES", "EROFS", "EIO"),
    "read": ("EMFILE", "EIO", "EACCES"),
    "memory": ("MEMORY",),
}
FULL = "FULL"  # no space from this call on
KILL = "KILL"  # the process dies: half of a write is on the disk
TAKES_SPACE = ("open", "write", "mkdir", "fsync")
# Where large arrays come from; file contents are counted as they are read.
ALLOCATIONS: tuple[tuple[Any, str], ...] = (
    (np, "ascontiguousarray"),
    (np, "hstack"),
    (torch, "as_tensor"),
    (torch, "from_numpy"),
    (torch, "stack"),
    (torch, "zeros"),
)
TORCH_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4000000000000 bytes. Error code 12 (Cannot allocate memory)"
)


def no_memory_of_opencv() -> cv2.error:
    """What OpenCV raises in the place of a MemoryError."""
    return cv2.error(
        "OpenCV(5.0.0) /io/opencv/modules/core/src/alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate "
        "4800000000 bytes in function 'OutOfMemoryError'\n"
    )


@dataclass(frozen=True)
class Call:
    """One call: what it does, to which file."""

    kind: str
    path: str


class FailingCalls:
    """Counts the calls below folders, and lets one of them fail.

    Args:
        folders: what lies in them counts.
        fail_at: number of the call, from 1; 0: none.
        error: name of an errno, ``FULL``, ``KILL`` or ``MEMORY``.
        memory: count allocations and what is read from files, instead of calls of the file system.
        reached: called with the call just before it fails.
    """

    def __init__(
        self,
        folders: Sequence[str],
        *,
        fail_at: int = 0,
        error: str = "",
        memory: bool = False,
        reached: Callable[[Call], object] = lambda call: None,
    ) -> None:
        self.folders, self.fail_at, self.error, self.memory, self.reached = folders, fail_at, error, memory, reached
        self.calls: list[Call] = []
        self._process = os.getpid()

    def install(self) -> None:
        """From here on, and for the rest of this process."""
        real_open, shim = io.open, self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                def half() -> None:
                    super(Raw, self).write(memoryview(data)[: len(data) // 2])

                shim.met("write", self.name, half)
                return super().write(data)

            def readall(self) -> bytes:
                shim.met("memory", self.name)
                return super().readall()

            def readinto(self, buffer: Any) -> int | None:
                shim.met("memory", self.name)
                return super().readinto(buffer)

        def opened(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if isinstance(file, int) or not self.watches(file):
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            size = max(buffering, io.DEFAULT_BUFFER_SIZE)
            kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
            buffered = kind(raw, size)
            if "b" in mode:
                return buffered
            text = io.TextIOWrapper(buffered, io.text_encoding(encoding), errors, newline, buffering == 1)
            text.mode = mode  # type: ignore[misc]
            return text

        io.open = builtins.open = opened  # type: ignore[assignment]
        for name, kind in (("write", "write"), ("fsync", "fsync"), ("sendfile", "write")):
            setattr(os, name, self._counted_descriptor(getattr(os, name), kind))
        if self.memory:
            for owner, name in ALLOCATIONS:
                setattr(owner, name, self._counted_allocation(getattr(owner, name), f"{owner.__name__}.{name}"))
        sys.addaudithook(self._audit)

    def watches(self, path: Any, folder: int = -1) -> bool:
        """Whether a path counts; one that is relative to an open folder with the descriptor of that."""
        try:
            return absolute(path, folder).startswith(tuple(self.folders))
        except (TypeError, OSError):
            return False

    def met(self, kind: str, path: Any, half: Callable[[], object] = lambda: None, folder: int = -1) -> None:
        """A call is about to be made: count it, and let it fail if it is the one."""
        if os.getpid() != self._process or (kind == "memory") != self.memory:
            return
        given = os.fsdecode(path) if not isinstance(path, int) else str(path)
        call = Call(kind, absolute(path, folder) if folder >= 0 else given)
        self.calls.append(call)
        number = len(self.calls)
        still_full = self.error == FULL and self.fail_at and number > self.fail_at and kind in TAKES_SPACE
        if number != self.fail_at and not still_full:
            return
        if number == self.fail_at:
            self.reached(call)
        half()
        if self.error == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "memory":
            raise RuntimeError(TORCH_MEMORY) if call.path.startswith("torch.") else MemoryError
        code = errno.ENOSPC if self.error == FULL else getattr(errno, self.error)
        named = () if kind in ("write", "fsync") else (given,)  # as the system: a descriptor has no name
        raise OSError(code, os.strerror(code), *named)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, (str, bytes, os.PathLike)) and self.watches(path):
                writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                self.met("open" if writes else "read", path)
        elif event in ("os.rename", "os.link"):
            _, target, *folders = args
            if self.watches(target, folders[-1]):
                self.met("rename", target, folder=folders[-1])
        elif event == "os.symlink" and self.watches(args[1], args[-1]):
            self.met("rename", args[1], folder=args[-1])
        elif event == "os.mkdir" and self.watches(args[0], args[-1]):
            self.met("mkdir", args[0], folder=args[-1])
        elif event in ("os.remove", "os.rmdir") and self.watches(args[0], args[-1]):
            self.met("unlink", args[0], folder=args[-1])

    def _counted_descriptor(self, call: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def counted(descriptor: Any, *args: Any) -> Any:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            path = os.readlink(f"/proc/self/fd/{number}")
            if self.watches(path):
                self.met(kind, path)
            return call(descriptor, *args)

        return counted

    def _counted_allocation(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.met("memory", name)
            return call(*args, **kwargs)

        return counted


def absolute(path: Any, folder: int = -1) -> str:
    """A path from the root; ``folder`` is the descriptor of what it is relative to, -1 for the current folder."""
    text = os.fsdecode(path)
    return os.path.abspath(os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text) if folder >= 0 else text)


@contextlib.contextmanager
def small_files(most: int) -> Iterator[None]:
    """Context in which no file of this process grows beyond so many bytes, for whoever writes it: a full disk to native
    code, which the shim does not see."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))  # Python ignores the signal
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
