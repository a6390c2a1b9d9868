"""Stored reference outputs, and the formula that filled the reference networks' weights and inputs.

No random library is involved in it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def load(golden: Path, name: str) -> dict[str, Any]:
    """Read ``name.pt`` of the reference outputs."""
    return torch.load(golden / f"{name}.pt", weights_only=True)


def hash01(i: int, count: int) -> np.ndarray:
    """The first ``count`` values, in [-1/2, 1/2), of stream ``i``: an integer hash modulo 2**32."""
    x = (np.arange(count, dtype=np.uint64) * 2654435761 + i * 40503 + 12345) & MASK
    x ^= x >> np.uint64(15)
    x = (x * 2246822519) & MASK
    x ^= x >> np.uint64(13)
    x = (x * 3266489917) & MASK
    x ^= x >> np.uint64(16)
    return x.astype(np.float64) / 2**32 - 0.5


def filled_tensor(key: str, shape: list[int], i: int, gain: float) -> Tensor:
    """Value of the ``i``-th entry of a reference state dict."""
    u = hash01(i, math.prod(shape)).reshape(shape)
    if key.endswith("running_var"):
        value = 1 + u / 2
    elif key.endswith(("running_mean", "bias")):
        value = u / 10
    elif len(shape) == 1:
        value = 1 + u / 2
    elif len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1:
        value = u / 2
    else:
        value = u * math.sqrt(12 * gain / (math.prod(shape) / shape[0]))
    return torch.from_numpy(np.ascontiguousarray(value)).float()


def filled_state(keys: list[tuple[str, list[int]]], gain: float) -> dict[str, Tensor]:
    """State dict of a reference network; counters of batches are left out, and do not count."""
    kept = [(key, shape) for key, shape in keys if not key.endswith("num_batches_tracked")]
    return {key: filled_tensor(key, shape, i, gain) for i, (key, shape) in enumerate(kept)}


def reference_keys(golden: Path, name: str) -> list[tuple[str, list[int]]]:
    """``(key, shape)`` in the order of the reference state dict."""
    return [tuple(entry) for entry in json.loads((golden / f"backbone_keys_{name}.json").read_text())]


def filled_image(height: int, width: int) -> Tensor:
    """Input image, (1, 3, height, width)."""
    return torch.from_numpy(4 * hash01(65535, 3 * height * width)).float().reshape(1, 3, height, width)


def assert_matches(output: Tensor, reference: dict, tolerance: float = 1e-5) -> None:
    """Compare an output with the statistics and samples stored of the reference's, relative to the largest one."""

    def check(got: Tensor, key: str) -> None:
        expected = torch.as_tensor(reference[key], dtype=torch.float64)
        error = (got.double() - expected).abs().max().item() / expected.abs().max().item()
        assert error <= tolerance, f"{key} is off by {error:.1e}"

    assert list(output.shape) == list(reference["shape"])
    sample = output[0, :8, :6, :6] if output.dim() == 4 else output[0, :64]
    check(sample, "slice_c8_h6_w6")
    check(output.double().mean(), "mean")
    check(output.double().std(), "std")
    if "strided" in reference:
        check(output.flatten()[:: reference["strided_step"]], "strided")
    if "chan_mean" in reference and output.dim() == 4:
        check(output.double().mean(dim=(0, 2, 3)), "chan_mean")
