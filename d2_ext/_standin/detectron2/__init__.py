"""Stand-in for the part of Detectron2 that d2_ext uses; found as ``detectron2`` where the real one is not installed.

Same module paths, names, arguments, defaults, state-dict keys and numbers; README.md says what it covers and where it
differs. ``__standin__`` tells the two apart.
"""

from __future__ import annotations

if __name__ != "detectron2":  # a second copy of every class under another name would fail each isinstance check
    raise ImportError(
        f"The stand-in must be imported as 'detectron2', not as {__name__!r}: do 'import d2_ext' first, then "
        "'import detectron2'."
    )

__version__ = "0.6+d2ext"
__standin__ = True

from detectron2 import _missing
from detectron2.utils.env import setup_environment

_missing.explain_missing_modules()
setup_environment()
