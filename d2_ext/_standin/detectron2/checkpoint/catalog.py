"""``catalog://ImageNetPretrained/<name>``: backbones that were published with Detectron and Caffe2."""

from __future__ import annotations

import logging
from typing import IO, Any, ClassVar

from detectron2.utils.file_io import PathHandler, PathManager


class ModelCatalog:
    """Names of published models and where they lie.

    Their batch norms are folded into an affine layer, so they belong into models with "FrozenBN"; they need
    ``PIXEL_STD`` 1, and those of MSRA ``STRIDE_IN_1X1`` True.
    """

    S3_C2_DETECTRON_PREFIX = "https://dl.fbaipublicfiles.com/detectron"

    C2_IMAGENET_MODELS: ClassVar[dict[str, str]] = {
        "MSRA/R-50": "ImageNetPretrained/MSRA/R-50.pkl",
        "MSRA/R-101": "ImageNetPretrained/MSRA/R-101.pkl",
        "FAIR/R-50-GN": "ImageNetPretrained/47261647/R-50-GN.pkl",
        "FAIR/R-101-GN": "ImageNetPretrained/47592356/R-101-GN.pkl",
        "FAIR/X-101-32x8d": "ImageNetPretrained/20171220/X-101-32x8d.pkl",
        "FAIR/X-101-64x4d": "ImageNetPretrained/FBResNeXt/X-101-64x4d.pkl",
        "FAIR/X-152-32x8d-IN5k": "ImageNetPretrained/25093814/X-152-32x8d-IN5k.pkl",
    }

    @staticmethod
    def get(name: str) -> str:
        """URL of ``ImageNetPretrained/<name>``.

        Raises:
            RuntimeError: for any other name; the detectors of Caffe2 are not listed.
        """
        short = name.removeprefix("ImageNetPretrained/")
        if short == name or short not in ModelCatalog.C2_IMAGENET_MODELS:
            known = ", ".join(f"ImageNetPretrained/{model}" for model in ModelCatalog.C2_IMAGENET_MODELS)
            raise RuntimeError(f"model not present in the catalog: {name}. Known are: {known}.")
        return f"{ModelCatalog.S3_C2_DETECTRON_PREFIX}/{ModelCatalog.C2_IMAGENET_MODELS[short]}"


class ModelCatalogHandler(PathHandler):
    """Resolves ``catalog://``."""

    PREFIX = "catalog://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        url = ModelCatalog.get(path.removeprefix(self.PREFIX))
        logging.getLogger(__name__).info(f"Catalog entry {path} points to {url}")
        return PathManager.get_local_path(url, **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> IO:
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


PathManager.register_handler(ModelCatalogHandler())
