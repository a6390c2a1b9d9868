"""All file names below a folder, read once: looking for a format then asks no disk."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from d2_ext.errors import DatasetError
from d2_ext.images import IMAGE_SUFFIXES, printable

__all__ = ["Listing"]

MAX_DEPTH = 6
MAX_FILES = 5_000_000


class Listing:
    """The tree below a folder.

    A folder that holds nothing but one folder is skipped, since archives are often unpacked that way.

    Args:
        root: the folder.

    Attributes:
        root: where the tree begins.
        folders: path below the root ("" for the root itself) -> its file names, sorted. Hidden folders are left out.
        name_sets: the same as sets.

    Raises:
        DatasetError: if the folder is missing, empty or far too large for a data set, or a name in it is not UTF-8.
    """

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        if not root.is_dir():
            raise DatasetError(f"No folder '{root.absolute()}'. Expected a folder with images and annotations.")
        self.root = root
        self.folders: dict[str, list[str]] = {}
        self._count = 0
        self._scan("", 0)
        if not self._count:
            raise DatasetError(f"'{root}' holds no files. Expected a folder with images and annotations.")
        while not self.folders[""] and len(inner := [f for f in self.folders if f and "/" not in f]) == 1:
            below = f"{inner[0]}/"  # paths begin anew below the only folder
            self.root = self.root / inner[0]
            self.folders = {f[len(below) :]: names for f, names in self.folders.items() if f"{f}/".startswith(below)}
        self.name_sets = {folder: frozenset(names) for folder, names in self.folders.items()}

    def _scan(self, folder: str, depth: int) -> None:
        names: list[str] = []
        below: list[str] = []
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.name != printable(entry.name):
                    raise DatasetError(f"'{printable(entry.path)}' has a name that is not UTF-8. Rename it.")
                (below if entry.is_dir() else names).append(entry.name)
        self.folders[folder] = sorted(names)
        self._count += len(names)
        if self._count > MAX_FILES:
            raise DatasetError(f"'{self.root}' holds over {MAX_FILES} files. Name the data set's own folder.")
        for name in sorted(below) if depth < MAX_DEPTH else ():
            self._scan(f"{folder}/{name}" if folder else name, depth + 1)

    def files(self, suffixes: Iterable[str]) -> Iterator[tuple[str, str]]:
        """(folder, file name) of all files with one of the suffixes (lower case, with dot)."""
        wanted = tuple(suffixes)
        for folder, names in self.folders.items():
            for name in names:
                if name.lower().endswith(wanted):
                    yield folder, name

    def images(self, folder: str) -> list[str]:
        """Names of the images directly in a folder."""
        return [name for name in self.folders.get(folder, ()) if name.lower().endswith(IMAGE_SUFFIXES)]

    def below(self, folder: str) -> list[str]:
        """A folder, if it exists, and all folders below it."""
        return [f for f in self.folders if f == folder or not folder or f.startswith(f"{folder}/")]

    def path(self, folder: str, name: str = "") -> Path:
        """The path on the disk."""
        return self.root / folder / name

    def relative(self, path: Path) -> str | None:
        """The name in :attr:`folders` of a path on the disk; None if it is not below the root."""
        root, place = os.path.abspath(self.root), os.path.abspath(path)
        if place == root:
            return ""
        inside = os.path.relpath(place, root).replace(os.sep, "/")
        return None if inside.startswith("../") else inside

    def summary(self) -> str:
        """What lies at the top, for error messages."""
        top = sorted(f"{f}/" for f in self.folders if f and "/" not in f) + self.folders[""]
        return ", ".join(top[:8]) + (", ..." if len(top) > 8 else "")

    @staticmethod
    def parent(folder: str) -> str:
        """The folder above, "" for the top."""
        above = str(PurePosixPath(folder).parent)
        return "" if above == "." else above
