"""The stand-in for Detectron2 that comes with d2_ext: same module paths and names, written for this project."""

from __future__ import annotations

if __name__ != "detectron2":
    raise ImportError(
        f"This package must be imported as 'detectron2', not as {__name__!r}: else its classes exist twice. "
        "Write 'import d2_ext', then 'import detectron2'."
    )

__version__ = "0.6+d2ext"
__standin__ = True

from detectron2 import _missing
from detectron2.utils.env import setup_environment

_missing.explain_missing_modules()
__getattr__ = _missing.refuse(__name__, "")
setup_environment()
