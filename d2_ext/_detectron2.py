"""Make ``import detectron2`` work: the installed Detectron2 if there is one, else the stand-in.

Detectron2 is not on PyPI. Where it is not installed, the folder ``d2_ext/_standin`` is appended to ``sys.path``, so
that ``detectron2`` is found there, under its own name, by this process and by every worker it starts
(``multiprocessing`` hands ``sys.path`` to its children before they unpickle anything). A regular package found
elsewhere always comes first, and beats a stray folder called ``detectron2`` too.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import sys
from pathlib import Path

ENV_VAR = "D2_EXT_DETECTRON2"
CHOICES = ("auto", "stock", "standin")
STANDIN_DIR = Path(__file__).resolve().parent / "_standin"
INSTALL_PAGE = "https://detectron2.readthedocs.io/en/latest/tutorials/install.html"


def ensure_detectron2() -> str:
    """Choose the implementation that ``import detectron2`` gives in this process; safe to call again.

    The choice follows the environment variable ``D2_EXT_DETECTRON2``: ``auto`` (default) takes the installed
    package, else the stand-in; ``stock`` insists on the installed package; ``standin`` hides an installed one. A
    ``detectron2`` that is already imported is never replaced, and an installed one that fails to import raises its
    own error: there is no silent change to the stand-in.

    Returns:
        ``"stock"`` or ``"standin"``.

    Raises:
        ImportError: for an unknown choice, for ``stock`` without an installed package, and if the package that is
            already imported contradicts the choice.
    """
    choice = os.environ.get(ENV_VAR, "auto")
    if choice not in CHOICES:
        raise ImportError(f"{ENV_VAR}={choice!r} is not known. Set it to one of {', '.join(CHOICES)}, or unset it.")
    if "detectron2" in sys.modules:
        return _check_imported(choice)
    if choice == "standin":
        _put_standin_on_path(first=True)
        return _report("standin", f"{ENV_VAR}=standin")
    if choice == "stock":  # a parent process may have handed the folder down
        sys.path[:] = [entry for entry in sys.path if entry != str(STANDIN_DIR)]
    origin = _installed_origin()
    if origin is not None and Path(origin).resolve().parent.parent != STANDIN_DIR:
        return _report("stock", origin)
    if choice == "stock":
        raise ImportError(
            f"{ENV_VAR}=stock, but no Detectron2 is installed for {sys.executable}. Install it ({INSTALL_PAGE}), or "
            f"set {ENV_VAR}=auto to use the stand-in that comes with d2_ext."
        )
    _put_standin_on_path(first=False)
    return _report("standin", "no Detectron2 is installed")


def _installed_origin() -> str | None:
    """File of the regular package ``detectron2``; a bare folder of that name (a namespace package) is none."""
    spec = importlib.util.find_spec("detectron2")
    return None if spec is None or spec.loader is None else spec.origin


def _put_standin_on_path(*, first: bool) -> None:
    entry = str(STANDIN_DIR)
    if first:
        sys.path[:] = [entry, *(p for p in sys.path if p != entry)]
    elif entry not in sys.path:
        sys.path.append(entry)
    importlib.invalidate_caches()


def _check_imported(choice: str) -> str:
    module = sys.modules["detectron2"]
    found = "standin" if getattr(module, "__standin__", False) else "stock"
    if getattr(module, "__file__", None) is None:
        raise ImportError(
            f"'detectron2' was imported from the folder {list(module.__path__)}, which is not a package (a clone's "
            "parent folder on the path?). Import d2_ext before detectron2, or remove that folder from the path."
        )
    if choice not in ("auto", found):
        raise ImportError(
            f"{ENV_VAR}={choice}, but the {found} detectron2 ({module.__file__}) is already imported. "
            "Import d2_ext before detectron2."
        )
    return found


@functools.cache  # once a process
def _report(kind: str, why: str) -> str:
    text = "Detectron2: %s" if kind == "stock" else "Detectron2: the stand-in of d2_ext (%s)"
    logging.getLogger("d2_ext").info(text, why)
    return kind
