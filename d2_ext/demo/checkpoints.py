"""The checkpoints below one folder, under names that say nothing of the file system outside it."""

from __future__ import annotations

from pathlib import Path

from d2_ext.checkpoint.zoo import list_models, model_weights
from d2_ext.errors import CheckpointError, ConfigError

CONFIG_NAME = "config.yaml"
MAX_CHECKPOINTS = 200


def list_checkpoints(root: str | Path | None) -> dict[str, Path]:
    """List the models of the package, and the checkpoints below a root.

    Args:
        root: see :func:`find_checkpoints`; None takes ``output`` if there are checkpoints below it.

    Returns:
        Name -> file, those of the package first.

    Raises:
        ConfigError: as of :func:`find_checkpoints`, for a root that is given or if the package has no models.
    """
    models = {name: model_weights(name) for name in list_models()}
    try:
        return {**models, **find_checkpoints("output" if root is None else root)}
    except ConfigError:
        if root is None and models:
            return models
        raise


def find_checkpoints(root: str | Path) -> dict[str, Path]:
    """List the checkpoints of all run folders below a root.

    A run folder holds ``config.yaml`` and ``.pth`` files. What a link leads out of the root to is left out.

    Args:
        root: e.g. ``output``.

    Returns:
        Name (path below the root) -> file; final models first, then by name; at most 200.

    Raises:
        ConfigError: if there is no such folder, or no run folder with a checkpoint in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"--root: no folder {root.resolve()}. Give the folder that holds run folders, e.g. output.")
    inside = root.resolve()
    files = [path for config in root.glob(f"**/{CONFIG_NAME}") for path in config.parent.glob("*.pth")]
    kept = [path for path in files if path.is_file() and path.resolve().is_relative_to(inside)]
    if not kept:
        raise ConfigError(
            f"--root: no run folder with {CONFIG_NAME} and a .pth file below {inside}. Train first, for instance with "
            "d2_ext train --config-file quickstart/retinanet_ceasc_R18_synthetic.yaml"
        )
    kept.sort(key=lambda path: (path.name != "model_final.pth", path.as_posix()))
    return {path.relative_to(root).as_posix(): path for path in kept[:MAX_CHECKPOINTS]}


def choose(checkpoints: dict[str, Path], name: object) -> Path:
    """The file of a name that came from a client: looked up, never made into a path.

    Raises:
        CheckpointError: for a name that is not in the list.
    """
    if not isinstance(name, str) or name not in checkpoints:
        raise CheckpointError("That checkpoint is not in the list. Choose one of the list.")
    return checkpoints[name]
