"""The checkpointer of detectors: several file formats, and name matching."""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import ParseResult, parse_qs, urlparse

import torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer

from .c2_model_loading import align_and_update_state_dicts
from .safe_load import load_pickle, load_torch


class DetectionCheckpointer(Checkpointer):
    """Saves on the main process; loads ``.pth``, ``.pyth`` of pycls, and ``.pkl`` of the model zoos.

    ``path?matching_heuristics=True`` matches the names of the file to those of the model by their endings. No code
    of a file is ever run: files with anything but arrays and plain containers raise ``pickle.UnpicklingError``.

    Args:
        model: the wrapper of a data-parallel model is taken off.
        save_dir: folder of the files that are saved.
        save_to_disk: whether :meth:`save` writes; only on the main process for None.
        checkpointables: other objects with ``state_dict`` and ``load_state_dict``, by key.
    """

    def __init__(
        self, model: torch.nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        if save_to_disk is None:
            save_to_disk = comm.is_main_process()
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self._parsed_url_during_load: ParseResult | None = None

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load model and checkpointables from a path or URL; an empty one loads nothing.

        Returns:
            What else the file holds, such as ``iteration``.
        """
        assert self._parsed_url_during_load is None
        logging.getLogger(__name__).info(f"[DetectionCheckpointer] Loading from {path} ...")
        try:
            if path:
                self._parsed_url_during_load = urlparse(path)
                path = self.path_manager.get_local_path(self._parsed_url_during_load._replace(query="").geturl())
            return super().load(path, *args, **kwargs)
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            return self._load_zoo_pickle(filename)
        if filename.endswith(".pyth"):
            return _load_pycls(filename)
        content = self._torch_load(filename)
        wrapped = content if "model" in content else {"model": content}
        return {**wrapped, "matching_heuristics": True} if self._asks_for_heuristics() else wrapped

    def _asks_for_heuristics(self) -> bool:
        """Whether the address ends in ``?matching_heuristics=True``, the only query that it may have."""
        url = self._parsed_url_during_load
        assert url is not None, "`_load_file` must be called inside `load`"
        queries = parse_qs(url.query)
        wish = queries.pop("matching_heuristics", [])
        if queries:
            raise ValueError(f"Unsupported query remaining: {queries}, original filename: {url.geturl()}")
        return wish == ["True"]

    def _torch_load(self, f: str) -> Any:
        return load_torch(f, f)

    def _load_zoo_pickle(self, filename: str) -> dict[str, Any]:
        with PathManager.open(filename, "rb") as file:
            data = load_pickle(filename, file)
        if "model" in data and "__author__" in data:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            return data
        blobs = data.get("blobs", data)  # detectors of Caffe2 have "blobs", ImageNet models have not
        weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(),
                checkpoint["model"],
                c2_conversion=checkpoint.get("__author__") == "Caffe2",
            )
        incompatible = super()._load_model(checkpoint)
        # Pixel statistics come from the config, and cell anchors are computed, whatever the file's age.
        buffers = dict(self.model.named_buffers(recurse=False))
        for name in ("pixel_mean", "pixel_std"):
            if name in buffers and name in incompatible.missing_keys:
                incompatible.missing_keys.remove(name)
        for name in list(incompatible.unexpected_keys):
            if "anchor_generator.cell_anchors" in name:
                incompatible.unexpected_keys.remove(name)
        return incompatible


def _load_pycls(filename: str) -> dict[str, Any]:
    with PathManager.open(filename, "rb") as file:
        data = load_torch(filename, file)
    assert "model_state" in data, f"{filename} is not a checkpoint of pycls: it has no 'model_state'."
    weights = {name: value for name, value in data["model_state"].items() if not name.endswith("num_batches_tracked")}
    return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
