"""What this machine computes on, and in which precision."""

from __future__ import annotations

from d2_ext.errors import ConfigError

import torch


def default_device() -> str:
    """``"cuda"`` if this machine has a usable GPU, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_device(name: str) -> str:
    """Turn ``auto`` into the best device of this machine, and check any other name.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...

    Raises:
        ConfigError: for a name torch does not know, and for a GPU that is not there.
    """
    if name == "auto":
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not known. Expected auto, cpu, cuda or cuda:NUMBER.") from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device {name!r}: torch cannot use Apple's GPU here. Choose auto or cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r}: torch sees {torch.cuda.device_count()} GPUs here. Choose auto, cpu or one of them."
        )
    return name


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; emulation is slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported", "_is_arm_bf16_supported")
    return any(getattr(torch.cpu, name)() for name in checks if hasattr(torch.cpu, name))
