"""Weights as ``.safetensors``: a format that cannot hold code, for models that are passed on."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2_ext.checkpoint.durable import write_durably
from d2_ext.errors import CheckpointError

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = ["read_safetensors", "write_safetensors"]

HALVED_FROM = 1024  # elements; smaller tensors (biases, norms, running statistics) stay float32


def read_safetensors(filename: str) -> dict[str, Any]:
    """Read a file of weights.

    Args:
        filename: a local file.

    Returns:
        ``model`` (tensors by name, on the CPU), and ``class_names`` if the file says them.

    Raises:
        CheckpointError: the file is damaged, or its names of classes are not a list of texts.
    """
    try:
        with safe_open(filename, framework="pt", device="cpu") as file:
            content: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, struct.error) as error:
        raise CheckpointError(f"Checkpoint {filename} is no whole safetensors file ({error}). Get it again.") from error
    if "class_names" in metadata:
        try:
            names = json.loads(metadata["class_names"])
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise CheckpointError(
                f"Checkpoint {filename}: its metadata class_names is {metadata['class_names'][:80]!r}. Expected a JSON "
                "list of texts."
            )
        content["class_names"] = names
    return content


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    class_names: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    """Write weights in one step.

    Args:
        path: the file.
        tensors: by name.
        class_names: of the K classes.
        metadata: more texts, such as the licence.
        half: store tensors of ``HALVED_FROM`` elements and more as float16, half the size; a model that loads them
            computes in float32 as before, with weights rounded to 11 bits.

    Raises:
        CheckpointError: a weight is too large for float16.
        TrainingError: the file cannot be written.
    """
    stored = {}
    for name, tensor in tensors.items():
        small = half and tensor.dtype == torch.float32 and tensor.numel() >= HALVED_FROM
        stored[name] = (tensor.half() if small else tensor).detach().cpu().contiguous().clone()
        if small and not torch.isfinite(stored[name]).all():
            raise CheckpointError(f"{name} holds values beyond the range of float16. Write the file without half.")
    texts = {"format": "pt", **(metadata or {})}
    if class_names:
        texts["class_names"] = json.dumps(list(class_names))
    content = safetensors.torch.save(stored, texts)
    write_durably(path, lambda file: file.write(content))
