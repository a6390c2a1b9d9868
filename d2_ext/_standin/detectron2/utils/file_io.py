"""The path manager through which all files are read: local, http(s), OneDrive and ``detectron2://``."""

from __future__ import annotations

from typing import IO, Any

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

__all__ = ["PathManager", "PathHandler"]

PathManager = _PathManager()
"""The instance of this package, separate from the global one of fvcore."""


class Detectron2Handler(PathHandler):
    """Resolve ``detectron2://<path>`` to the published files of Detectron2."""

    PREFIX = "detectron2://"
    S3_DETECTRON2_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _url(self, path: str) -> str:
        return self.S3_DETECTRON2_PREFIX + path.removeprefix(self.PREFIX)

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        return PathManager.get_local_path(self._url(path), **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> IO:
        return PathManager.open(self._url(path), mode, **kwargs)


for _handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(_handler)
