"""Loading detectors from files of Detectron2, of its model zoo and of Caffe2."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.checkpoint.safe_load import load_pickle, load_torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from fvcore.common.checkpoint import Checkpointer


class DetectionCheckpointer(Checkpointer):
    """fvcore's ``Checkpointer`` that reads more formats and runs nothing of what it reads.

    - ``.pth``: a state dict, or a dict with one under "model" and anything else.
    - ``.pkl`` of the model zoo: a dict with arrays under "model", and "__author__".
    - ``.pkl`` of Caffe2: arrays, also under "blobs", with Caffe2's names.

    Names are compared by their endings (see :func:`align_and_update_state_dicts`) if the file has a true
    "matching_heuristics", as backbones have, or the path ends with ``?matching_heuristics=True``.
    """

    _match_endings = False

    def __init__(
        self, model: torch.nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        """See fvcore's class; only the main process saves, unless ``save_to_disk`` says otherwise."""
        saves = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=saves, **checkpointables)
        self.path_manager = PathManager

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file or URL, nothing for an empty path; gives what else the file holds.

        Raises:
            ValueError: for a query other than ``?matching_heuristics=...``.
            AssertionError: if there is no such file.
            pickle.UnpicklingError: if the file holds more than tensors, arrays and plain values.
        """
        file, _, query = (path or "").partition("?")
        options = parse_qs(query)
        self._match_endings = options.pop("matching_heuristics", []) == ["True"]
        if options:
            raise ValueError(f"Checkpoint {path}: the query may say matching_heuristics, not {', '.join(options)}.")
        return super().load(file, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            with self.path_manager.open(filename, "rb") as file:
                content = load_pickle(filename, file)
            if {"model", "__author__"} <= content.keys():
                return content
            blobs = content.get("blobs", content)
            weights = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        if filename.endswith(".pyth"):
            raise NotImplementedError(f"{filename}: files of pycls need Detectron2 itself; save the weights as .pth.")
        content = self._torch_load(filename)
        return content if "model" in content else {"model": content}

    def _torch_load(self, filename: str) -> dict[str, Any]:
        with self.path_manager.open(filename, "rb") as file:
            return load_torch(filename, file)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if self._match_endings:
            checkpoint["matching_heuristics"] = True
        if checkpoint.get("matching_heuristics"):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            is_caffe2 = checkpoint.get("__author__") == "Caffe2"
            checkpoint["model"] = align_and_update_state_dicts(
                self.model.state_dict(), checkpoint["model"], c2_conversion=is_caffe2
            )
        differences = super()._load_model(checkpoint)
        # What comes from the config or is computed was saved by old versions: no reason for a warning.
        return differences._replace(
            missing_keys=[key for key in differences.missing_keys if key not in ("pixel_mean", "pixel_std")],
            unexpected_keys=[key for key in differences.unexpected_keys if "anchor_generator.cell_anchors" not in key],
        )
