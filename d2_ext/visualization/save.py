"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_at_once(path: str | Path) -> Iterator[Path]:
    """Context in which a file is written under another name in its folder, with the same suffix; then it is renamed.

    Args:
        path: of the file; its folder is made if it is not there.

    Yields:
        The name to write to. After an exception neither file is there, or the old one as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
