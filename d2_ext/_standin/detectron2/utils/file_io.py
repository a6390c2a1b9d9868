"""The path manager of Detectron2: local paths, URLs, and ``detectron2://`` for files of the model zoo."""

from __future__ import annotations

from typing import Any

from iopath.common.file_io import HTTPURLHandler, OneDrivePathHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

__all__ = ["PathHandler", "PathManager"]

_ZOO_URL = "https://dl.fbaipublicfiles.com/detectron2/"


class Detectron2Handler(HTTPURLHandler):
    """Downloads what a path below ``detectron2://`` names, and keeps it in iopath's cache."""

    PREFIX = "detectron2://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return super()._get_local_path(path.replace(self.PREFIX, _ZOO_URL, 1), force, **kwargs)


PathManager = _PathManager()
for _handler in (HTTPURLHandler(), OneDrivePathHandler(), Detectron2Handler()):
    PathManager.register_handler(_handler)
