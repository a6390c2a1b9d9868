"""Files from strangers, read safely, and files of our own, written as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from d2_ext.errors import ConfigError

import yaml

__all__ = ["NO_LINKS", "naming", "read_yaml", "remove_temporaries", "replacing", "temporary_beside"]

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # what systems say that make no links
# Of a YAML file; a value that an alias (*name) repeats counts again. The largest config has some 500 values.
MAX_VALUES, MAX_ALIASES, MAX_LEVELS = 100_000, 1_000, 50


def read_yaml(path: Path, refusal: type[ValueError] = ConfigError) -> Any:
    """Read the plain values of a YAML file; nothing of it is executed, and its size is limited.

    Args:
        path: of the file, in UTF-8.
        refusal: the error to raise.

    Raises:
        ConfigError: (or ``refusal``) it cannot be read, or is not a safe, well-formed YAML file: keys that stand twice
            in one mapping, and more values, aliases or levels than the limits are not.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _LimitedLoader)
    except OSError as error:
        raise refusal(f"{path} cannot be read: {error.strerror}. Restore it, or name another file.") from error
    except MemoryError as error:
        raise refusal(f"{path} cannot be read: memory ran out. Free some.") from error
    except Exception as error:  # besides YAMLError, what PyYAML's conversions of tags, dates and numbers happen to meet
        reason = error if isinstance(error, yaml.YAMLError | UnicodeError) else f"{type(error).__name__}: {error}"
        in_one_line = " ".join(str(reason).replace('in "<unicode string>", ', "in ").split())
        raise refusal(f"{path} is not a safe, well-formed YAML file: {in_one_line}") from error


class _LimitedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, without double keys, and without short documents that stand for billions of values."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._aliases = self._level = 0
        self._extents: dict[int, tuple[int, int]] = {}  # values and levels of a node, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self._aliases += isinstance(event, yaml.AliasEvent)
        self._level += 1
        if self._aliases > MAX_ALIASES or self._level > MAX_LEVELS:
            limit = f"more than {MAX_ALIASES} aliases (*name) or {MAX_LEVELS} levels"
            raise yaml.composer.ComposerError(None, None, limit, event.start_mark)
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        self._measure(node)
        return super().construct_document(node)

    def _measure(self, node: yaml.Node) -> tuple[int, int]:
        """How many values and levels a node stands for, aliases written out; each node is visited once."""
        if id(node) in self._extents:
            return self._extents[id(node)]
        self._extents[id(node)] = MAX_VALUES, 0  # met again before it is measured: it stands within itself
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            seen: set[tuple[str, str]] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in seen:
                    twice = f"the key {key.value!r} stands twice in one mapping: keep one of them"
                    raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
                seen.add((key.tag, key.value))
            children = [child for pair in node.value for child in pair]
        extents = [self._measure(child) for child in children]
        values, levels = 1 + sum(v for v, _ in extents), 1 + max((n for _, n in extents), default=0)
        if values > MAX_VALUES or levels > MAX_LEVELS:
            limit = f"more than {MAX_VALUES} values or {MAX_LEVELS} levels, with what its aliases (*name) repeat"
            raise yaml.composer.ComposerError(None, None, limit, node.start_mark)
        self._extents[id(node)] = values, levels
        return values, levels


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Context that gives a temporary path beside ``path``, with its suffix; at the end it takes the place of ``path``.

    The folder is made if it is not there. After an exception nothing is left, and ``path`` is as before; an OSError
    that names no file, as of a full disk, gets this one's name.

    Args:
        path: of the file to write.
        durable: force the file and its name to the disk, so that they survive a power cut.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with naming(path):
            yield temporary
            if durable:
                _sync(temporary)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink()
        raise
    if durable:
        with contextlib.suppress(OSError):  # not every folder can be opened and synced; the file is whole
            _sync(path.parent)


def temporary_beside(path: Path) -> Path:
    """The name that a file or folder has until it is whole; :func:`remove_temporaries` knows it."""
    # A name of the file system's full 255 bytes leaves no room for more.
    stem = path.stem if len(os.fsencode(path.name)) < 200 else path.stem[:40]
    return path.with_name(f".{stem}.{os.getpid()}.tmp{path.suffix}")


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context whose OSErrors name a file: that of writing to a full disk says "No space left on device" alone."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:  # one of another kind has a message of its own
            error.filename = os.fspath(path)
        raise


def remove_temporaries(folder: Path) -> None:
    """Remove what a process that was killed inside :func:`replacing` has left in a folder."""
    for path in list(folder.glob(".*.[0-9]*.tmp*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    # Windows syncs only what is open for writing, and no folders.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
