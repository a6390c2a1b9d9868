"""The checkout: its scripts as modules, and child processes that import it."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs/quickstart/retinanet_ceasc_R18_synthetic.yaml"


@functools.cache
def load_script(name: str) -> ModuleType:
    """A script of the checkout as a module, loaded once.

    Args:
        name: its path, relative to the root of the checkout.
    """
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    assert spec is not None, name
    assert spec.loader is not None, name
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))  # as for a script that is run: beside it lies what it imports
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def child_environment(**changes: str) -> dict[str, str]:
    """Of a process that imports this checkout and its tests' helpers, with one thread."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **changes}


def run_python(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter of the tests to its end, in :func:`child_environment` unless ``env`` is given."""
    command = [sys.executable, *map(str, arguments)]
    env = child_environment() if env is None else env
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False)
